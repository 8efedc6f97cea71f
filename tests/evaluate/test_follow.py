"""Which checkpoints `evaluate --follow` takes, and when it ends."""

import os
import signal
import types

import pytest

from realm_jax.evaluate import follow
from realm_jax.workdir import files


class Run:
  """A training run, as the files of its workdir show it."""

  def __init__(self, folder, monkeypatch):
    self.folder, self.output = folder / 'w', folder / 'out'
    self.folder.mkdir()
    self.steps, self.indexed = [], []
    self.refreshed = False
    self.later = []  # what happens while it waits
    self.asked = []  # steps that were evaluated, with the directories
    questions = folder / 'q.jsonl'
    questions.write_text('{"question": "Who?", "answers": ["A"]}\n')
    self.questions = str(questions)
    config = types.SimpleNamespace(closed_book=False)
    self.workdir = types.SimpleNamespace(config=config, stage='pretrain')
    for place, name, fake in (
      (follow.checkpoints, 'steps', lambda path: list(self.steps)),
      (follow.leases, 'refresher_lives', lambda path: self.refreshed),
      (follow.Workdir, 'open', lambda path: self.workdir),
      (follow, 'find_version', self.find_version),
      (follow, 'restore', lambda path, step, *_: step),
      (follow, 'score', self.score),
      (follow.time, 'sleep', lambda seconds: self.later.pop(0)()),
    ):
      monkeypatch.setattr(place, name, fake)

  def save(self, *steps, indexed=True, recorded=True):
    self.steps += steps
    self.indexed += steps if indexed else []
    if not recorded:
      return
    with open(self.folder / 'saved.jsonl', 'a') as file:
      file.writelines(f'{{"step": {step}}}\n' for step in steps)

  def finish(self):
    (self.folder / 'finished.json').write_text('{}')

  def find_version(self, workdir, step, *_):
    if step not in self.indexed:
      raise ValueError(f'step {step} has no index')

  def score(self, step, asked, questions, directories):
    self.asked.append(step)
    for directory in directories:
      directory.mkdir(parents=True, exist_ok=True)
      files.write_json(directory / 'metrics.json', {'checkpoint_step': step})
    return {}

  def follow(self):
    self.asked = []
    return follow.follow(str(self.folder), self.questions, str(self.output))

  def newest(self):
    return files.read_json(self.output / 'metrics.json')['checkpoint_step']


@pytest.fixture
def run(tmp_path, monkeypatch):
  return Run(tmp_path, monkeypatch)


def test_the_newest_first_and_each_once(run):
  def more():
    run.save(9)
    run.finish()

  run.later = [lambda: run.save(3, 6), more]
  assert run.follow() == 0
  assert run.asked == [6, 3, 9] and run.newest() == 9
  assert run.follow() == 0 and run.asked == []


def test_the_newest_is_recorded_later(run):
  run.save(3, recorded=False)
  run.later = [lambda: None, run.finish]
  assert run.follow() == 0
  assert run.asked == [3]


def test_says_what_is_left_out(run, capsys):
  run.save(3, indexed=False)
  run.save(6)
  run.finish()
  assert run.follow() == 0
  assert run.asked == [6]
  said = capsys.readouterr().err
  assert 'step 3 is left out: step 3 has no index' in said


def test_an_imported_checkpoint_is_all_there_is(run):
  run.workdir.stage = 'import'
  run.save(0)
  assert run.follow() == 0
  assert run.asked == [0]


@pytest.mark.parametrize(
  'place, error', [('indexed', ValueError), ('steps', FileNotFoundError)]
)
def test_what_was_deleted_meanwhile(run, monkeypatch, place, error):
  """A version that was pruned, a checkpoint."""

  def restore(path, step, *_):
    if step == 3:
      getattr(run, place).remove(3)
      raise error(step)
    return step

  monkeypatch.setattr(follow, 'restore', restore)
  run.save(3, 6)
  run.finish()
  assert run.follow() == 0
  assert run.asked == [6]


def test_an_error_that_stays_ends_it(run, monkeypatch):
  def restore(*_):
    raise ValueError('damaged')

  monkeypatch.setattr(follow, 'restore', restore)
  run.save(3)
  with pytest.raises(ValueError, match='damaged'):
    run.follow()


def test_the_newest_stays_on_top(run):
  run.save(3, 6)
  run.finish()
  assert run.follow() == 0
  assert run.asked == [6, 3] and run.newest() == 6


def test_waits_for_the_index_of_a_checkpoint(run):
  run.save(3)
  run.save(6, indexed=False)
  run.finish()
  run.refreshed = True
  run.later = [lambda: run.indexed.append(6)]
  assert run.follow() == 0
  assert run.asked == [3, 6] and run.newest() == 6


def test_says_that_the_last_one_has_no_index(run):
  run.save(6, indexed=False)
  run.finish()
  with pytest.raises(ValueError, match='step 6 has no index'):
    run.follow()


def test_a_run_that_went_on_from_an_earlier_step(run):
  def again():
    run.steps.remove(6)
    (run.folder / 'saved.jsonl').write_text('{"step": 3}\n')

  def anew():
    run.save(6)
    run.finish()

  run.save(3, 6)
  run.later = [again, anew]
  assert run.follow() == 0
  assert run.asked == [6, 3, 6]


def test_sigterm_ends_it(run, capsys):
  run.later = [lambda: os.kill(os.getpid(), signal.SIGTERM)]
  assert run.follow() == 75
  assert 'stopped by SIGTERM' in capsys.readouterr().err
