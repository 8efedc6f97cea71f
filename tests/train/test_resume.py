"""Runs that are stopped, killed or wrong, and go on."""

import os
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from realm_jax.corpus.store import Corpus
from realm_jax.data.ict import IctSource
from realm_jax.index import build
from realm_jax.index.refresh import refresh
from realm_jax.train import losses as losses_lib
from realm_jax.train import refresh_policy
from realm_jax.train import run as run_lib
from realm_jax.train.run import train
from realm_jax.workdir import checkpoints, files, versions
from realm_jax.workdir.digest import tree_digest
from realm_jax.workdir.metrics import MetricsWriter, read_swaps
from realm_jax.workdir.run import Workdir

pytestmark = pytest.mark.usefixtures('compiled_once')


def digests(path, step):
  """Of all parameters in a checkpoint, part by part."""
  shapes = checkpoints.params_shapes(path, step)
  return {
    part: tree_digest(checkpoints.restore_part(path, step, part, shape))
    for part, shape in shapes.items()
  }


def losses(path):
  return [(x['step'], x['loss']) for x in files.read_lines(path)]


@pytest.mark.parametrize(
  'stage, changes',
  [
    ('ict', {}),
    ('pretrain', {'refresh': {'where': 'in_process', 'every': 2}}),
  ],
)
def test_stopped_and_resumed_equals_uninterrupted(
  tmp_path, corpus, monkeypatch, stage, changes
):
  config = small_runs.make_config(corpus, **changes)
  whole, halves = tmp_path / 'whole', tmp_path / 'halves'
  assert train(stage, config, str(whole)) == 0
  with monkeypatch.context():
    small_runs.terminate_at(monkeypatch, 3)
    assert train(stage, config, str(halves)) == 75
  monkeypatch.undo()
  assert not (halves / 'finished.json').exists()
  stopped = checkpoints.steps(halves)[-1]
  assert 3 <= stopped < config.num_steps
  # Who sent SIGTERM does not wait for an index.
  assert all(swap['step'] < stopped for swap in read_swaps(halves))
  assert train(stage, config, str(halves)) == 0
  assert files.read_json(halves / 'finished.json') == {'step': 6}
  assert losses(halves / 'metrics.jsonl') == losses(whole / 'metrics.jsonl')
  assert [step for step, _ in losses(whole / 'metrics.jsonl')] == [*range(1, 7)]
  assert digests(halves, 6) == digests(whole, 6)
  if stage == 'pretrain':
    # A line more tells where the run was taken up.
    both = [
      [(x['step'], x['version'], x['checkpoint_step']) for x in read_swaps(w)]
      for w in (whole, halves)
    ]
    assert both[0] == [(0, 1, 0), (2, 2, 2), (4, 3, 4), (6, 4, 6)]
    assert sorted(set(both[1]) - set(both[0])) in (
      [],
      [(stopped, *both[0][(stopped - 1) // 2][1:])],
    )
    records = [
      checkpoints.read_record(w, 6)['embedder_digest'] for w in (whole, halves)
    ]
    assert records[0] == records[1]


def test_the_index_of_another_run_is_taken_up_again(
  tmp_path, corpus, monkeypatch
):
  config = small_runs.make_config(corpus, num_steps=2)
  assert train('ict', config, str(tmp_path / 'ict')) == 0
  assert refresh(str(tmp_path / 'ict'), follow=False) == 0
  config = small_runs.make_config(corpus, init_from=str(tmp_path / 'ict'))
  whole, halves = tmp_path / 'whole', tmp_path / 'halves'
  assert train('pretrain', config, str(whole)) == 0
  with monkeypatch.context():
    small_runs.terminate_at(monkeypatch, 3)
    assert train('pretrain', config, str(halves)) == 75
  monkeypatch.undo()
  assert train('pretrain', config, str(halves)) == 0
  for path in (whole, halves):
    assert versions.list_versions(path / 'index') == []
    lines = files.read_lines(path / 'metrics.jsonl')
    # Steps are those of this run, whatever the other one counted.
    assert {line['index_step'] for line in lines} == {0}
    assert [line['staleness_steps'] for line in lines] == [*range(1, 7)]
  assert losses(halves / 'metrics.jsonl') == losses(whole / 'metrics.jsonl')
  assert digests(halves, 6) == digests(whole, 6)


@pytest.mark.parametrize(
  'name',
  ['rows/c/0/0', pytest.param('manifest.json', marks=pytest.mark.slow)],
)
def test_a_run_whose_version_was_damaged_goes_on(
  tmp_path, corpus, monkeypatch, capsys, name
):
  config = small_runs.make_config(
    corpus, refresh={'where': 'in_process', 'every': 2}
  )
  path = tmp_path / 'w'
  with monkeypatch.context():
    small_runs.terminate_at(monkeypatch, 3)
    assert train('pretrain', config, str(path)) == 75
  monkeypatch.undo()
  index = Workdir.open(path).index
  step = checkpoints.steps(path)[-1]
  used = checkpoints.read_record(path, step)['index_version']
  file = versions.directory(index, used) / name
  small_runs.flip_bit(file)
  before = versions.read_manifest(index, used - 1)
  capsys.readouterr()
  assert train('pretrain', config, str(path)) == 0
  assert f'passed over: {file}' in capsys.readouterr().err
  # With the version before it, until the next one is made.
  resumed = [x['version'] for x in read_swaps(path) if x['step'] == step]
  assert before.version in resumed
  assert used not in versions.list_versions(index)
  assert [step for step, _ in losses(path / 'metrics.jsonl')] == [*range(1, 7)]
  assert read_swaps(path)[-1]['checkpoint_step'] == 6


def test_a_killed_trainer_resumes(tmp_path, corpus, cache):
  keys = {'refresh': {'where': 'in_process', 'every': 5}, 'checkpoint_every': 3}
  path = tmp_path / 'w'
  experiment = small_runs.write_experiment(
    tmp_path / 'x.py', corpus, num_steps=100000, **keys
  )
  arguments = ['pretrain', '--config', experiment, '--workdir', str(path)]
  trainer = small_runs.start(arguments, cache)
  deadline = time.monotonic() + 100
  while len(steps := checkpoints.steps(path)) < 2 or steps[-1] < 7:
    assert trainer.poll() is None and time.monotonic() < deadline
    time.sleep(0.02)
  config = small_runs.make_config(corpus, num_steps=1, **keys)
  with pytest.raises(ValueError, match='another trainer is running'):
    train('pretrain', config, str(path))
  trainer.send_signal(signal.SIGKILL)
  trainer.wait()
  last = checkpoints.steps(path)[-1] + 4
  config = small_runs.make_config(corpus, num_steps=last, **keys)
  assert train('pretrain', config, str(path)) == 0
  assert checkpoints.steps(path)[-1] == last
  steps = [step for step, _ in losses(path / 'metrics.jsonl')]
  assert steps == list(range(1, last + 1))
  swaps = read_swaps(path)
  assert [x['step'] for x in swaps] == sorted(x['step'] for x in swaps)
  assert swaps[-1]['checkpoint_step'] == last


def test_a_trainer_killed_before_its_first_step_resumes(tmp_path, corpus):
  config = small_runs.make_config(corpus, num_steps=1)
  path = tmp_path / 'w'
  assert train('pretrain', config, str(path)) == 0
  # As it stands when step 0 is the only checkpoint.
  for step in checkpoints.steps(path)[1:]:
    (Workdir.open(path).checkpoints / str(step)).rmtree()
  assert checkpoints.steps(path) == [0]
  assert train('pretrain', config, str(path)) == 0
  assert checkpoints.steps(path) == [0, 1]
  assert versions.list_versions(path / 'index') == [1]


def test_sigterm_while_the_first_index_is_built(tmp_path, corpus, monkeypatch):
  def stop(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError('SIGTERM was not heard')

  before = signal.getsignal(signal.SIGTERM)
  config, path = small_runs.make_config(corpus), tmp_path / 'w'
  with monkeypatch.context():
    monkeypatch.setattr(build, '_write_rows', stop)
    assert train('pretrain', config, str(path)) == 75
  monkeypatch.undo()
  assert signal.getsignal(signal.SIGTERM) == before
  assert not (path / 'index').exists() or not list((path / 'index').iterdir())
  assert not checkpoints.steps(path)
  assert train('pretrain', config, str(path)) == 0
  assert versions.list_versions(path / 'index') == [1]


def test_sigterm_while_the_last_step_is_saved(tmp_path, corpus, monkeypatch):
  """All is done: it neither stops the process nor loses what is written."""
  close, unheard = checkpoints.Checkpoints.close, []

  def close_late(self):
    os.kill(os.getpid(), signal.SIGTERM)
    close(self)

  monkeypatch.setattr(checkpoints.Checkpoints, 'close', close_late)
  before = signal.signal(signal.SIGTERM, lambda *_: unheard.append(1))
  try:
    config = small_runs.make_config(corpus)
    assert train('ict', config, str(tmp_path / 'w')) == 0
  finally:
    signal.signal(signal.SIGTERM, before)
  assert not unheard
  assert (tmp_path / 'w' / 'finished.json').exists()
  assert checkpoints.steps(tmp_path / 'w') == [6]


def test_an_error_waits_for_what_is_being_saved(tmp_path, corpus, monkeypatch):
  calls = []
  for name in ('save', 'wait'):
    call = getattr(checkpoints.Checkpoints, name)

    def note(*arguments, name=name, call=call, **keywords):
      calls.append(name)
      call(*arguments, **keywords)

    monkeypatch.setattr(checkpoints.Checkpoints, name, note)

  def write(self, step, values):
    if step == 3:
      fail()

  monkeypatch.setattr(MetricsWriter, 'write', write)
  config = small_runs.make_config(corpus, checkpoint_every=2)
  with pytest.raises(RuntimeError, match='dies'):
    train('ict', config, str(tmp_path / 'w'))
  assert calls == ['save', 'wait', 'wait']  # a save waits for the one before
  assert checkpoints.steps(tmp_path / 'w') == [2]


def test_a_version_made_after_the_checkpoint_is_not_made_again(
  tmp_path, corpus, monkeypatch
):
  config = small_runs.make_config(
    corpus, refresh={'where': 'in_process', 'every': 2}
  )
  path = tmp_path / 'w'
  with monkeypatch.context() as patch:
    small_runs.terminate_at(patch, 3)
    assert train('pretrain', config, str(path)) == 75
  assert checkpoints.steps(path)[-1] == 4
  with monkeypatch.context() as patch:
    # Step 4's version is made; the run dies before it saves another step.
    patch.setattr(MetricsWriter, 'write', fail)
    with pytest.raises(RuntimeError, match='dies'):
      train('pretrain', config, str(path))
  assert train('pretrain', config, str(path)) == 0
  last = read_swaps(path)[-1]
  assert (last['step'], last['version'], last['checkpoint_step']) == (6, 4, 6)


def fail(*_):
  raise RuntimeError('dies')


def test_fewer_steps_than_are_done_are_refused(tmp_path, corpus):
  path = tmp_path / 'w'
  assert train('ict', small_runs.make_config(corpus), str(path)) == 0
  before = (path / 'config.json').read_text()
  with pytest.raises(ValueError, match=r'num_steps is 5, but .* at step 6'):
    train('ict', small_runs.make_config(corpus, num_steps=5), str(path))
  assert (path / 'config.json').read_text() == before
  assert (path / 'finished.json').exists()


def test_a_step_that_is_saved_while_it_waits_keeps_its_score(
  tmp_path, corpus, monkeypatch
):
  def wait(self, feed, step, save, swap, stopped):
    if step == 2:
      save()
    return False

  monkeypatch.setattr(refresh_policy.Patience, 'wait', wait)
  asked = small_runs.write_lines(
    tmp_path / 'q.jsonl', map(small_runs.question, range(8))
  )
  config = small_runs.make_config(
    corpus, questions=asked, dev_questions=asked, num_steps=3, eval_every=2
  )
  assert train('finetune', config, str(tmp_path / 'w')) == 0
  assert checkpoints.read_meta(tmp_path / 'w', 2)['score'] is not None


def test_another_stage_is_refused(tmp_path, corpus):
  config = small_runs.make_config(corpus)
  Workdir.create(tmp_path / 'w', 'pretrain', config)
  with pytest.raises(ValueError, match='holds the stage pretrain, not ict'):
    train('ict', config, str(tmp_path / 'w'))


def test_a_second_trainer_is_refused(tmp_path, corpus):
  config = small_runs.make_config(corpus)
  workdir = Workdir.create(tmp_path / 'w', 'ict', config)
  with (
    workdir.lock('trainer'),
    pytest.raises(ValueError, match='another trainer is running'),
  ):
    train('ict', config, str(tmp_path / 'w'))


@pytest.mark.parametrize('log_every', [1, 100])
def test_a_loss_that_is_no_number_stops_before_it_is_saved(
  tmp_path, corpus, log_every
):
  config = small_runs.make_config(
    corpus,
    log_every=log_every,
    checkpoint_every=4,
    optimizer={'learning_rate': 1e38},
  )
  # Step 1 is fine and moves the parameters out of range; what step 2 trained
  # on is named, however much later the loss was looked at.
  with pytest.raises(FloatingPointError) as raised:
    train('ict', config, str(tmp_path / 'w'))
  blocks = IctSource(Corpus.open(corpus), 8, 24, 0.9, 0).ids(1)
  assert len(blocks) == 8 and all(' (block ' in block for block in blocks)
  assert str(raised.value) == (
    f'step 2: the loss is nan on {", ".join(blocks)}'
  )
  assert checkpoints.steps(tmp_path / 'w') == []
  assert not (tmp_path / 'w' / 'finished.json').exists()
  lines = files.read_lines(tmp_path / 'w' / 'metrics.jsonl')
  assert all(np.isfinite(line['loss']) for line in lines)


def test_a_gradient_that_is_no_number_is_not_saved(
  tmp_path, corpus, monkeypatch
):
  right = losses_lib.token_log_probs

  def without_gradient(*arguments):
    return right(*arguments) + jnp.sqrt(0 * right(*arguments))

  monkeypatch.setattr(losses_lib, 'token_log_probs', without_gradient)
  config = small_runs.make_config(corpus, num_steps=1)
  with pytest.raises(
    FloatingPointError, match=r'^step 1: the gradient norm is'
  ):
    train('mlm', config, str(tmp_path / 'w'))
  assert checkpoints.steps(tmp_path / 'w') == []


def test_fine_tuning_goes_on_with_the_index_that_it_made(tmp_path, corpus):
  """Without an index to start with; its embedder never trains."""
  asked = small_runs.write_lines(
    tmp_path / 'q.jsonl', [small_runs.question(n) for n in range(8)]
  )
  path = tmp_path / 'w'
  for steps in (2, 3):
    config = small_runs.make_config(corpus, questions=asked, num_steps=steps)
    assert train('finetune', config, str(path)) == 0
  assert [line['version'] for line in read_swaps(path)] == [1, 1]
  config = small_runs.make_config(
    corpus, questions=asked, num_steps=1, index_from=str(path)
  )
  assert train('finetune', config, str(tmp_path / 'other')) == 0
  (swap,) = read_swaps(tmp_path / 'other')
  assert swap['index'] == str(path / 'index')


def test_a_trainer_that_waited_for_the_lock_goes_on(
  tmp_path, corpus, monkeypatch
):
  """The one before saved its first step while the new one was set up."""
  config = small_runs.make_config(corpus, num_steps=2)
  path, told = tmp_path / 'w', []
  initial = run_lib._initial_state

  def late(*arguments):
    with monkeypatch.context() as patch:
      patch.setattr(run_lib, '_initial_state', initial)
      assert train('ict', config, str(path)) == 0
    told.append((path / 'metrics.jsonl').read_text())
    return initial(*arguments)

  monkeypatch.setattr(run_lib, '_initial_state', late)
  longer = small_runs.make_config(corpus, num_steps=3)
  assert train('ict', longer, str(path)) == 0
  assert (path / 'metrics.jsonl').read_text().startswith(told[0])
  assert checkpoints.steps(path)[-1] == 3


def test_a_loss_that_is_no_number_is_told_of_before_what_it_breaks(
  tmp_path, corpus
):
  # Nobody looks at a loss before the index of step 3 is made of its parameters.
  config = small_runs.make_config(
    corpus,
    log_every=100,
    sample_every=0,
    optimizer={'learning_rate': 1e38},
    refresh={'where': 'in_process', 'every': 3},
  )
  with pytest.raises(FloatingPointError, match=r'^step 2: the loss is \w+ on '):
    train('pretrain', config, str(tmp_path / 'w'))
