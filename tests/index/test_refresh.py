"""The refresh job and the thread that follows it."""

import contextlib
import os
import pathlib
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import small_runs

from realm_jax import config as config_lib
from realm_jax.corpus import change
from realm_jax.index import build
from realm_jax.index.follow import Follower
from realm_jax.index.refresh import PASSED_OVER, refresh
from realm_jax.workdir import checkpoints, files, leases, rows, versions
from realm_jax.workdir.run import Workdir


def wait_until(condition):
  """What the condition gives when it holds."""
  deadline = time.monotonic() + 10
  while not (found := condition()):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  return found


@contextlib.contextmanager
def following(index, after, suitable=lambda _: None, **options):
  """A follower of versions above `after`, which reads all their rows."""
  follower = Follower(
    index, after, suitable, lambda rows: (0, rows), 0.01, **options
  )
  try:
    yield follower
  finally:
    follower.close()


def manifests(workdir):
  return [
    versions.read_manifest(workdir.index, version)
    for version in versions.list_versions(workdir.index)
  ]


def test_a_run_without_a_corpus_is_not_refreshed(make_run, config):
  workdir = make_run(config_lib.replace(config, corpus=''))
  with pytest.raises(ValueError, match='names no corpus; import it with'):
    refresh(str(workdir.path), follow=False)


def test_once_builds_the_newest_step_once(make_run, config):
  workdir = make_run(config, steps=(1, 4))
  assert refresh(str(workdir.path), follow=False) == 0
  [manifest] = manifests(workdir)
  assert manifest.checkpoint_step == 4
  record = checkpoints.read_record(workdir.path, 4)
  assert manifest.embedder_digest == record['embedder_digest']
  before = os.stat(versions.directory(workdir.index, 1) / 'manifest.json')
  assert refresh(str(workdir.path), follow=False) == 0
  assert len(manifests(workdir)) == 1
  after = os.stat(versions.directory(workdir.index, 1) / 'manifest.json')
  assert after == before


def test_once_without_a_checkpoint_is_refused(tmp_path, config):
  with pytest.raises(ValueError, match='not a workdir'):
    refresh(str(tmp_path / 'w'), follow=False)
  Workdir.create(tmp_path / 'w', 'pretrain', config)
  with pytest.raises(ValueError, match='no checkpoint yet'):
    refresh(str(tmp_path / 'w'), follow=False)


@pytest.mark.parametrize('where', ['in_process', 'rolling'])
def test_a_run_that_refreshes_itself_is_not_followed(
  make_run, config, where, monkeypatch
):
  workdir = make_run(config_lib.replace(config, refresh={'where': where}))
  with pytest.raises(ValueError, match=f'where is {where}: the trainer'):
    refresh(str(workdir.path), follow=True)
  with monkeypatch.context() as patch:
    patch.setattr(files, 'is_local', lambda path: False)
    with pytest.raises(ValueError, match='a bucket has no locks'):
      refresh(str(workdir.path), follow=False)
  assert refresh(str(workdir.path), follow=False) == 0


def test_a_second_refresher_is_refused(make_run, config):
  workdir = make_run(config)
  with (
    workdir.lock('refresher'),
    pytest.raises(ValueError, match='another refresher is running'),
  ):
    refresh(str(workdir.path), follow=False)


def test_without_locks_a_second_refresher_waits(
  make_run, config, monkeypatch, capsys
):
  workdir = make_run(config)
  assert refresh(str(workdir.path), follow=False) == 0
  first = leases.Lease(workdir.path, 'refresher')
  monkeypatch.setattr(files, 'is_local', lambda path: False)
  first.take()
  asked = []

  def wait(self, seconds):
    del self, seconds
    asked.append(leases.refresher_lives(workdir.path))
    if len(asked) == 2:
      first.end()
    return False

  monkeypatch.setattr('realm_jax.index.refresh._Stop.wait', wait)
  assert refresh(str(workdir.path), follow=False) == 0
  assert asked == [True, True]
  assert 'another refresher is, or was just now' in capsys.readouterr().err
  # Two that look before either has said so: both give way.
  second = leases.Lease(workdir.path, 'refresher')
  living, looked = leases.living, []

  def too_late(path):
    looked.append(len(living(path)))
    if len(looked) == 1:
      second.take()
      return []
    return living(path)

  def end(self, seconds):
    del self, seconds
    second.end()
    return False

  monkeypatch.setattr(leases, 'living', too_late)
  monkeypatch.setattr('realm_jax.index.refresh._Stop.wait', end)
  assert refresh(str(workdir.path), follow=False) == 0
  assert looked == [0, 2, 0, 1]


def test_rows_of_another_dtype_are_built_anew(make_run, config):
  workdir = make_run(config)
  assert refresh(str(workdir.path), follow=False) == 0
  other = config_lib.replace(config, index={'rows_dtype': 'float32'})
  Workdir.create(workdir.path, 'pretrain', other)
  assert refresh(str(workdir.path), follow=False) == 0
  assert [x.dtype for x in manifests(workdir)] == ['bfloat16', 'float32']


def test_once_takes_the_newest_corpus_and_follow_the_runs(
  tmp_path, make_run, config, store
):
  shutil.copytree(store, tmp_path / 'z')
  config = config_lib.replace(config, corpus=str(tmp_path / 'z'))
  workdir = make_run(config)
  more = small_runs.write_lines(
    tmp_path / 'more.jsonl', [small_runs.document(77)]
  )
  changed = change.add(str(tmp_path / 'z'), [more], 'jsonl')
  pinned = files.read_json(workdir.path / 'corpus.json')['fingerprint']
  files.write_json(workdir.path / 'finished.json', {'step': 1})
  assert refresh(str(workdir.path), follow=True) == 0
  assert refresh(str(workdir.path), follow=False) == 0
  first, second = manifests(workdir)
  assert first.corpus_fingerprint == pinned
  assert second.corpus_fingerprint == changed['fingerprint']
  assert second.rows > first.rows
  assert refresh(str(workdir.path), follow=True) == 0
  assert len(manifests(workdir)) == 2


def test_follow_ends_when_the_last_step_of_a_finished_run_has_its_version(
  make_run, config, monkeypatch
):
  workdir = make_run(config, steps=(1,))
  built = []

  def finish(*arguments):
    built.append(arguments[5])
    if len(built) == 1:  # while the first is built, training ends
      make_run(config, steps=(6,))
      files.write_json(workdir.path / 'finished.json', {'step': 6})
    return build_version(*arguments)

  build_version = build.build_version
  monkeypatch.setattr(build, 'build_version', finish)
  assert refresh(str(workdir.path), follow=True) == 0
  assert built == [1, 6]
  assert [x.checkpoint_step for x in manifests(workdir)] == [1, 6]


def test_follow_does_not_embed_the_same_parameters_again(
  tmp_path, make_run, config
):
  workdir = make_run(config, steps=(1, 2), same=True)
  assert refresh(str(workdir.path), follow=False) == 0
  other = tmp_path / 'other'
  shutil.copytree(workdir.path, other)
  shutil.rmtree(workdir.index)
  Workdir.create(
    workdir.path,
    'pretrain',
    config_lib.replace(config, index_from=str(other)),
  )
  files.write_json(workdir.path / 'finished.json', {'step': 2})
  assert refresh(str(workdir.path), follow=True) == 0
  assert manifests(workdir) == []  # the trainer started with the other's
  # Asked for by name, it is made.
  assert refresh(str(workdir.path), follow=False) == 0
  assert len(manifests(workdir)) == 1


def test_sigterm_in_a_build(make_run, config, monkeypatch):
  workdir = make_run(config)
  embed_corpus = build.embed_corpus

  def interrupt(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    yield from embed_corpus(*arguments)

  monkeypatch.setattr(build, 'embed_corpus', interrupt)
  assert refresh(str(workdir.path), follow=True) == 75
  assert list(workdir.index.iterdir()) == []
  monkeypatch.undo()
  assert refresh(str(workdir.path), follow=False) == 0
  assert [x.version for x in manifests(workdir)] == [1]


@pytest.mark.parametrize(
  'place, name', [(rows.VersionWriter, 'finish'), (build, '_measure')]
)
def test_what_cannot_be_written_is_tried_again(
  make_run, config, monkeypatch, capsys, place, name
):
  workdir = make_run(config, steps=(1,))
  write, left = getattr(place, name), []

  def fail_once(*arguments):
    if left:
      return write(*arguments)
    # What the disk has room for is on it.
    left.extend(workdir.index.iterdir())
    files.write_json(workdir.path / 'finished.json', {'step': 1})
    raise OSError(28, 'No space left on device', '000001')

  monkeypatch.setattr(place, name, fail_once)
  assert refresh(str(workdir.path), follow=True) == 0
  assert [path.name for path in left] == ['000001']
  assert 'step 1 has no version: [Errno 28]' in capsys.readouterr().err
  assert [x.checkpoint_step for x in manifests(workdir)] == [1]
  assert [path.name for path in workdir.index.iterdir()] == ['000001']


def test_a_damaged_checkpoint_has_no_version(make_run, config, capsys):
  workdir = make_run(config, steps=(3, 5))
  folder = pathlib.Path(workdir.checkpoints) / '5' / 'params'
  file = max(folder.rglob('d/*'), key=lambda path: path.stat().st_size)
  small_runs.flip_bit(file)
  with pytest.raises(checkpoints.Damaged):
    refresh(str(workdir.path), follow=False)
  files.write_json(workdir.path / 'finished.json', {'step': 5})
  with pytest.raises(checkpoints.Damaged):
    refresh(str(workdir.path), follow=True)
  assert capsys.readouterr().err.count('step 5 has no version') == 1
  assert not manifests(workdir)
  (workdir.checkpoints / '5').rmtree()
  assert refresh(str(workdir.path), follow=False) == 0
  assert [x.checkpoint_step for x in manifests(workdir)] == [3]


def test_an_embedder_that_is_not_the_one_saved_is_refused(make_run, config):
  workdir = make_run(config)
  right = small_runs.forge_digest(workdir.path, 1)
  with pytest.raises(ValueError, match=f'digest {right[:12]}, {"f" * 12} was'):
    refresh(str(workdir.path), follow=False)


def test_a_version_that_is_refused_does_not_end_a_refresher(
  make_run, config, monkeypatch, capsys
):
  workdir = make_run(config, steps=(3,))
  check = build._check_recall

  def refuse(*arguments):
    monkeypatch.setattr(build, '_check_recall', check)
    make_run(config, steps=(5,))  # the trainer saves the next one
    files.write_json(workdir.path / 'finished.json', {'step': 5})
    raise build.Refused('recall@8 0.5')

  monkeypatch.setattr(build, '_check_recall', refuse)
  assert refresh(str(workdir.path), follow=True) == 0
  assert 'step 3 has no version: recall@8 0.5' in capsys.readouterr().err
  # The trainer reads it, lest it waits for that version.
  assert files.read_json(workdir.path / PASSED_OVER) == {'step': 3}
  assert [x.checkpoint_step for x in manifests(workdir)] == [5]


def test_a_checkpoint_that_is_deleted_gives_way_to_a_newer(
  make_run, config, monkeypatch
):
  workdir = make_run(config, steps=(3, 5))
  restore, asked = checkpoints.restore_part, []

  def late(path, step, *more):
    asked.append(step)
    if step == 5:
      make_run(config, steps=(6,))
      (workdir.checkpoints / '5').rmtree()
    return restore(path, step, *more)

  monkeypatch.setattr(checkpoints, 'restore_part', late)
  assert refresh(str(workdir.path), follow=False) == 0
  assert asked == [5, 6]
  assert [x.checkpoint_step for x in manifests(workdir)] == [6]


def test_never_an_older_checkpoint_after_a_newer(make_run, config, monkeypatch):
  workdir = make_run(config, steps=(3, 5))
  steps, asked = checkpoints.steps, []

  def lagging(path):
    asked.append(path)
    if len(asked) > 12:  # a store that lists what it had a while ago
      files.write_json(workdir.path / 'finished.json', {'step': 5})
    return steps(path) if len(asked) < 3 else steps(path)[:1]

  monkeypatch.setattr(checkpoints, 'steps', lagging)
  assert refresh(str(workdir.path), follow=True) == 0
  assert [x.checkpoint_step for x in manifests(workdir)] == [5]


def test_a_run_that_goes_on_from_an_earlier_step_has_its_versions(
  make_run, config, monkeypatch
):
  workdir = make_run(config, steps=(3, 5))
  waits = []

  def wait(self, timeout=None):
    waits.append(timeout)
    if len(waits) == 1:
      shutil.rmtree(workdir.checkpoints / '5')
      make_run(config, steps=(4,))  # forgets step 5
    elif len(waits) == 2:
      files.write_json(workdir.path / 'finished.json', {'step': 4})

  monkeypatch.setattr('realm_jax.index.refresh._Stop.wait', wait)
  assert refresh(str(workdir.path), follow=True) == 0
  assert [x.checkpoint_step for x in manifests(workdir)] == [5, 4]


def test_numbers_are_not_those_of_the_index_started_with(
  tmp_path, make_run, config
):
  workdir = make_run(config)
  assert refresh(str(workdir.path), follow=False) == 0
  other = tmp_path / 'other'
  shutil.copytree(workdir.path, other)
  shutil.rmtree(workdir.index)
  shared = config_lib.replace(config, index_from=str(other))
  Workdir.create(workdir.path, 'pretrain', shared)
  assert refresh(str(workdir.path), follow=False) == 0
  assert [x.version for x in manifests(workdir)] == [2]


def test_follow_may_start_before_its_trainer(tmp_path, monkeypatch):
  def wait(self, timeout=None):
    os.kill(os.getpid(), signal.SIGTERM)
    return self.is_set()

  monkeypatch.setattr('threading.Event.wait', wait)
  assert refresh(str(tmp_path / 'none'), follow=True) == 75


def test_old_versions_go_but_not_those_in_use(make_run, config):
  config = config_lib.replace(config, index={'keep': 1})
  workdir = make_run(config, steps=(1,))
  for step in (2, 3, 4):
    assert refresh(str(workdir.path), follow=False) == 0
    if step == 2:
      (workdir.swaps).write_text(
        '{"step": 1, "version": 1, "checkpoint_step": 1}\n'
      )
    make_run(config, steps=(step,))
  assert refresh(str(workdir.path), follow=False) == 0
  assert versions.list_versions(workdir.index) == [1, 4]


def publish(index, version, fingerprint='c'):
  data = np.full((5, 4), version, np.float32)
  writer = rows.VersionWriter(index, version, rows=5, dim=4, dtype='float32')
  writer.write(0, data)
  writer.finish()
  writer.commit(
    checkpoint_step=version,
    embedder_digest='e',
    corpus_fingerprint=fingerprint,
    tokenizer_digest='t',
    kind='exact',
    recall=None,
    build_seconds=1.0,
  )


def test_follower_passes_over_what_is_damaged_or_foreign(tmp_path, capsys):
  index = tmp_path / 'index'
  index.mkdir()

  def suitable(manifest):
    versions.check(manifest, corpus_fingerprint='c', tokenizer_digest='t')

  def take():
    deadline = time.monotonic() + 10
    while (ready := follower.take()) is None and time.monotonic() < deadline:
      time.sleep(0.01)
    return ready

  def passed_over(version):
    # What is read while it is printed may be lost: ask when it is over.
    wait_until(lambda: version in follower._bad)
    said = capsys.readouterr().err
    assert said.startswith(f'index version {version} passed over: ')
    assert said.count('\n') == 1
    assert follower.take() is None
    return said

  publish(index, 1)
  with following(index, 1, suitable) as follower:
    time.sleep(0.1)
    assert follower.take() is None  # it is in use already
    publish(index, 2)
    ready = take()
    assert ready.manifest.version == 2 and (ready.rows_nE == 2).all()
    publish(index, 3, fingerprint='other')
    assert 'other, expected c' in passed_over(3)
    directory = versions.directory(index, 4)
    publish(tmp_path / 'aside', 4)
    moved = versions.directory(tmp_path / 'aside', 4)
    chunk = moved / 'rows' / 'c' / '0' / '0'
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    os.rename(moved, directory)
    passed_over(4)
    publish(index, 5)
    assert take().manifest.version == 5
  # The damaged one is set aside; the other may be right for somebody else.
  assert versions.list_versions(index) == [1, 2, 3, 5]


def test_follower_asks_again_for_what_a_store_did_not_give(
  tmp_path, monkeypatch, capsys
):
  index = tmp_path / 'index'
  index.mkdir()
  publish(index, 1)
  read_rows, asked = rows.read_rows, []

  def failing(*arguments):
    asked.append(time.monotonic())
    if len(asked) < 4:
      raise OSError(5, 'Input/output error', 'c/0/0')
    return read_rows(*arguments)

  monkeypatch.setattr(rows, 'read_rows', failing)
  with following(index, 0) as follower:
    ready = wait_until(follower.take)
    assert ready.manifest.version == 1
  waits = np.diff(asked)
  assert list(waits) == sorted(waits) and waits[-1] > 0.6
  assert capsys.readouterr().err.count('index version 1 passed over') == 3


def test_follower_keeps_up_with_what_is_not_taken(tmp_path):
  index = tmp_path / 'index'
  index.mkdir()

  with following(index, 0, keeps_up=True) as follower:
    for version in (1, 2):
      publish(index, version)
      wait_until(lambda version=version: follower._ready == (version, version))
    # A newer one that is damaged does not cost the older one.
    publish(tmp_path / 'aside', 3)
    moved = versions.directory(tmp_path / 'aside', 3)
    (moved / 'rows' / 'c' / '0' / '0').write_bytes(b'')
    os.rename(moved, versions.directory(index, 3))
    wait_until(lambda: follower._bad and follower._ready)
    assert follower.take().manifest.version == 2
    assert follower.take() is None and follower._read == {}


def test_follower_lives_on_after_an_error_of_any_kind(tmp_path, capsys):
  index = tmp_path / 'index'
  index.mkdir()
  publish(index, 1)

  def suitable(manifest):
    if manifest.version == 1:
      raise KeyError('kind')

  with following(index, 0, suitable) as follower:
    # What is read while it is printed may be lost: ask when it is over.
    wait_until(lambda: follower._bad)
    assert 'index version 1 passed over' in capsys.readouterr().err
    publish(index, 2)
    ready = wait_until(follower.take)
    assert ready.manifest.version == 2


def test_follower_waits_for_a_slow_store_and_its_loop_does_not(
  tmp_path, monkeypatch
):
  index = tmp_path / 'index'
  index.mkdir()
  publish(index, 1)
  read_rows, answers = rows.read_rows, threading.Event()
  asked = threading.Event()

  def slowly(*arguments):
    asked.set()
    answers.wait(30)
    return read_rows(*arguments)

  monkeypatch.setattr(rows, 'read_rows', slowly)
  with following(index, 0) as follower:
    try:
      assert asked.wait(10)
      # Each step asks while the store does not answer.
      assert [follower.take() for _ in range(100)] == [None] * 100
      answers.set()
      ready = wait_until(follower.take)
      assert ready.manifest.version == 1
    finally:
      answers.set()


def test_follower_outlives_a_store_that_does_not_answer(
  tmp_path, monkeypatch, capsys
):
  index = tmp_path / 'index'
  index.mkdir()
  publish(index, 1)
  list_versions, asked = versions.list_versions, []

  def failing(path):
    asked.append(path)
    if len(asked) < 4:
      raise OSError(5, 'Input/output error', str(path))
    return list_versions(path)

  monkeypatch.setattr(versions, 'list_versions', failing)
  with following(index, 0) as follower:
    ready = wait_until(follower.take)
    assert ready.manifest.version == 1
  assert capsys.readouterr().err.count('Input/output error') == 1


def test_a_version_that_was_set_aside_is_made_again(
  make_run, config, monkeypatch
):
  workdir = make_run(config, steps=(1,))
  assert refresh(str(workdir.path), follow=False) == 0
  waited = []

  def wait(self, seconds):
    del self, seconds
    waited.append(versions.list_versions(workdir.index))
    if len(waited) == 1:
      versions.set_aside(workdir.index, 1)
    else:
      files.write_json(workdir.path / 'finished.json', {'step': 1})

  monkeypatch.setattr('realm_jax.index.refresh._Stop.wait', wait)
  assert refresh(str(workdir.path), follow=True) == 0
  # Its number is not given again: a follower knows it for a bad one.
  assert waited == [[1], [2]]
  assert refresh(str(workdir.path), follow=False) == 0
  make_run(config, steps=(2,))
  assert refresh(str(workdir.path), follow=False) == 0
  left = sorted(path.name for path in workdir.index.iterdir())
  assert left == ['000002', '000003']


def test_a_damaged_manifest_does_not_end_a_refresher(make_run, config, capsys):
  workdir = make_run(config, steps=(1,))
  assert refresh(str(workdir.path), follow=False) == 0
  manifest = versions.directory(workdir.index, 1) / 'manifest.json'
  manifest.write_text(manifest.read_text().replace('"dim": 8', '"dim": 9'))
  make_run(config, steps=(2,))
  assert refresh(str(workdir.path), follow=False) == 0
  assert versions.read_manifest(workdir.index, 2).checkpoint_step == 2
  assert f'{manifest}: is damaged' in capsys.readouterr().err


def test_follower_falls_back_from_a_damaged_version(tmp_path, capsys):
  index = tmp_path / 'index'
  index.mkdir()
  for version in (1, 2, 3, 4):
    publish(index, version)
  files_of = [versions.directory(index, version) for version in (3, 4)]
  chunks = [directory / 'rows' / 'c' / '0' / '0' for directory in files_of]
  chunks[1].write_bytes(chunks[0].read_bytes())  # rows of another version
  chunks[0].write_bytes(chunks[0].read_bytes()[:-7])  # torn
  with following(index, 1) as follower:
    ready = wait_until(follower.take)
  assert ready.manifest.version == 2 and (ready.rows_nE == 2).all()
  said = capsys.readouterr().err.splitlines()
  assert len(said) == 2
  for line, version, chunk in zip(said, (4, 3), chunks[::-1], strict=True):
    assert line.startswith(f'index version {version} passed over: {chunk}: ')
