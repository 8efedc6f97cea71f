"""Runs whose index changes by each policy, stopped and resumed."""

import contextlib

import pytest
import small_runs

from realm_jax.index import build, memory
from realm_jax.index.refresh import refresh
from realm_jax.train import version_maker
from realm_jax.train.run import train
from realm_jax.workdir import checkpoints, files, versions
from realm_jax.workdir.metrics import read_swaps

pytestmark = pytest.mark.usefixtures('compiled_once')


def make_config(corpus, **changes):
  """What is the same in all of them need not be compiled again."""
  return small_runs.make_config(
    corpus,
    num_steps=8,
    index={'keep': 9, 'rows_dtype': 'float32'},
    optimizer={'learning_rate': 0.01},
    **changes,
  )


def losses(workdir):
  return [
    (x['step'], x['loss']) for x in files.read_lines(workdir / 'metrics.jsonl')
  ]


def swaps(workdir):
  return [
    (x['step'], x['version'], x['checkpoint_step']) for x in read_swaps(workdir)
  ]


def run_twice(tmp_path, monkeypatch, config):
  """One run in one go, and one that is stopped after step 3 or 4."""
  whole, halves = tmp_path / 'whole', tmp_path / 'halves'
  assert train('pretrain', config, str(whole)) == 0
  with monkeypatch.context() as patch:
    small_runs.terminate_at(patch, 3)
    assert train('pretrain', config, str(halves)) == 75
  stopped = checkpoints.steps(halves)[-1]
  assert 3 <= stopped < config.num_steps
  assert train('pretrain', config, str(halves)) == 0
  assert losses(halves) == losses(whole)
  return whole, halves


def test_rows_that_steps_write_are_saved(tmp_path, corpus, monkeypatch):
  config = make_config(
    corpus,
    refresh={
      'where': 'rolling',
      'rows_per_step': 8,
      'write_back': True,
    },
    model={'dropout': 0.0},
    mesh={'data': 4, 'model': 2},
    micro_batches=2,
  )
  whole, _ = run_twice(tmp_path, monkeypatch, config)
  # 30 rows in turns of 8; a step searches before it renews.
  assert versions.read_manifest(whole / 'index', 1).rows == 30
  lines = files.read_lines(whole / 'metrics.jsonl')
  stale = [line['staleness_steps'] for line in lines]
  assert stale == [1, 2, 3, 4, 5, 5, 5, 5]
  ages = [line['retrieved_staleness_steps'] for line in lines]
  assert all(a <= b for a, b in zip(ages, stale, strict=True))
  # An index for those that follow.
  assert swaps(whole) == [(0, 1, 0), (8, 2, 8)]
  saved = checkpoints.steps(whole)[-1]
  assert (whole / 'checkpoints' / str(saved) / 'index').exists()


def test_rows_of_priority_outlive_a_swap(tmp_path, corpus, monkeypatch):
  config = make_config(
    corpus,
    refresh={
      'where': 'in_process',
      'every': 3,
      'policy': 'simulate_delay',
      'delay_steps': 2,
      'priority_rows': 4,
    },
    mesh={'data': 4, 'model': 2},
  )
  whole, _ = run_twice(tmp_path, monkeypatch, config)
  assert swaps(whole) == [(0, 1, 0), (5, 2, 3), (8, 3, 6)]
  lines = files.read_lines(whole / 'metrics.jsonl')
  ages = [line['retrieved_staleness_steps'] for line in lines]
  stale = [line['staleness_steps'] for line in lines]
  assert stale == [1, 2, 3, 4, 5, 3, 4, 5]
  assert all(a <= b for a, b in zip(ages, stale, strict=True))
  # Rows that step 4 had written are still there after the swap before step 6.
  assert ages[5] < stale[5]


def test_a_delayed_version_is_used_so_many_steps_later(
  tmp_path, corpus, monkeypatch
):
  keys = {
    'where': 'in_process',
    'policy': 'simulate_delay',
    'every': 2,
    'delay_steps': 3,
  }
  config = make_config(corpus, refresh=keys)
  whole, halves = run_twice(tmp_path, monkeypatch, config)
  assert swaps(whole) == [(0, 1, 0), (5, 2, 2), (7, 3, 4)]
  assert set(swaps(whole)) <= set(swaps(halves))
  stale = [
    line['staleness_steps']
    for line in files.read_lines(whole / 'metrics.jsonl')
  ]
  assert stale == [1, 2, 3, 4, 5, 4, 5, 4]


def test_swaps_are_measured_and_can_be_replayed(tmp_path, corpus):
  made, again = tmp_path / 'made', tmp_path / 'again'
  refresh = {'where': 'in_process', 'policy': 'schedule', 'schedule': '0:2,4:3'}
  config = make_config(corpus, refresh=refresh, log_every=2)
  assert train('pretrain', config, str(made)) == 0
  want = [(0, 1, 0), (2, 2, 2), (4, 3, 4), (7, 4, 7), (8, 5, 8)]
  assert swaps(made) == want
  probed = read_swaps(made)
  assert 'probe_kl' not in probed[0]
  for line in probed[1:]:
    assert line['probe_kl'] >= 0
    for name in ('overlap', 'recall_before', 'recall_after'):
      assert 0 <= line[f'probe_{name}@2'] <= 1
    # The version is of the very parameters it is compared with.
    assert line['probe_recall_after@2'] > 0.8
  assert min(line['probe_recall_before@2'] for line in probed[1:]) < 1
  assert any(line['probe_kl'] > 0 for line in probed[1:])
  lines = files.read_lines(made / 'metrics.jsonl')
  assert lines[1]['probe_kl'] == probed[1]['probe_kl']
  assert (lines[1]['staleness_p50'], lines[1]['staleness_p95']) == (2, 2)
  assert all(line['retrieval_collapse'] == 0 for line in lines)

  replay = {'where': 'separate', 'replay': str(made / 'swaps.jsonl')}
  config = make_config(corpus, refresh=replay, log_every=2)
  assert train('pretrain', config, str(again)) == 0
  assert losses(again) == losses(made)
  assert swaps(again) == want
  (made / 'index' / '000003' / 'manifest.json').unlink()
  with pytest.raises(ValueError, match=r'version 3 of step 4 is not in .*made'):
    train('pretrain', config, str(tmp_path / 'pruned'))


def test_adaptive_asks_the_refresher_when_the_index_is_old(tmp_path, corpus):
  keys = {'where': 'separate', 'policy': 'adaptive', 'every': 2}
  path = tmp_path / 'w'
  config = make_config(corpus, refresh=keys | {'min_overlap': 1.0})
  assert train('pretrain', config, str(path)) == 0
  # Asked for once, until it comes.
  asked = files.read_json(path / 'refresh_request.json')['step']
  assert asked in (2, 4, 6)
  assert checkpoints.steps(path) == [0, asked, 8]
  assert refresh(str(path), follow=True) == 0
  found = versions.readable(path / 'index')
  assert [manifest.checkpoint_step for manifest in found] == [0, 8]


def test_without_room_nothing_is_embedded(tmp_path, corpus, monkeypatch):
  monkeypatch.setattr(memory, '_free', lambda device: 100)
  with pytest.raises(ValueError, match='that are free'):
    train('pretrain', make_config(corpus), str(tmp_path / 'w'))
  assert versions.list_versions(tmp_path / 'w' / 'index') == []


def test_a_slice_that_cannot_be_split_is_refused(tmp_path, corpus):
  refresh = {'where': 'rolling', 'rows_per_step': 9}
  config = make_config(corpus, refresh=refresh)
  with pytest.raises(ValueError, match='rows_per_step: 9 is not a multiple'):
    train('pretrain', config, str(tmp_path / 'w'))


def test_rows_are_written_only_where_an_embedder_trains(tmp_path, corpus):
  for stage in ('ict', 'finetune'):
    config = small_runs.make_config(corpus, refresh={'write_back': True})
    with pytest.raises(ValueError, match='write_back: True, but ' + stage):
      train(stage, config, str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()


def test_fine_tuning_may_train_what_it_retrieves(tmp_path, corpus):
  questions = small_runs.write_lines(
    tmp_path / 'q.jsonl', map(small_runs.question, range(16))
  )
  keys = {
    'questions': questions,
    'refresh': {'where': 'in_process', 'every': 2},
    'train_document_embedder': True,
    'num_steps': 3,
  }
  config = small_runs.make_config(corpus, **keys)
  assert train('finetune', config, str(tmp_path / 'w')) == 0
  assert swaps(tmp_path / 'w') == [(0, 1, 0), (2, 2, 2), (3, 3, 3)]
  digests = [
    checkpoints.read_record(tmp_path / 'w', step)['embedder_digest']
    for step in (0, 2, 3)
  ]
  assert len(set(digests)) == 3
  stale = [
    line['staleness_steps']
    for line in files.read_lines(tmp_path / 'w' / 'metrics.jsonl')
  ]
  assert stale == [1, 2, 1]
  keys['train_document_embedder'] = False
  with pytest.raises(ValueError, match='but the run there has True'):
    config = small_runs.make_config(corpus, **keys)
    train('finetune', config, str(tmp_path / 'w'))


def test_training_goes_on_without_a_version_that_is_refused(
  tmp_path, corpus, monkeypatch, capsys
):
  config = make_config(corpus, refresh={'where': 'in_process', 'every': 3})
  check = build._check_recall

  def refuse(index, version, *more):
    monkeypatch.setattr(
      build, '_check_recall', check if version > 1 else refuse
    )
    if version > 1:
      raise build.Refused('recall@8 0.5')

  monkeypatch.setattr(build, '_check_recall', refuse)
  assert train('pretrain', config, str(tmp_path / 'w')) == 0
  assert 'step 3 has no index version: recall@8 0.5' in capsys.readouterr().err
  assert [(step, of) for step, _, of in swaps(tmp_path / 'w')] == [
    (0, 0),
    (6, 6),
    (8, 8),
  ]


def test_training_waits_for_a_refresher_that_is_done_soon(
  tmp_path, corpus, monkeypatch, capsys
):
  config = make_config(corpus, refresh={'where': 'in_process', 'every': 4})
  other = contextlib.ExitStack()

  def others(self, step, *more):
    if step == 4:
      other.enter_context(files.lock(tmp_path / 'w', 'refresher'))
    return make(self, step, *more)

  make = version_maker.VersionMaker.make
  monkeypatch.setattr(version_maker.VersionMaker, 'make', others)
  monkeypatch.setattr(version_maker.time, 'sleep', lambda _: other.close())
  assert train('pretrain', config, str(tmp_path / 'w')) == 0
  said = capsys.readouterr().err
  assert 'waits to make an index version: another refresher is' in said
  assert swaps(tmp_path / 'w') == [(0, 1, 0), (4, 2, 4), (8, 3, 8)]


def test_a_checkpoint_that_is_damaged_is_not_resumed(
  tmp_path, corpus, monkeypatch
):
  config = make_config(corpus, refresh={'where': 'in_process', 'every': 4})
  small_runs.terminate_at(monkeypatch, 3)
  assert train('pretrain', config, str(tmp_path / 'w')) == 75
  monkeypatch.undo()
  step = checkpoints.steps(tmp_path / 'w')[-1]
  small_runs.forge_digest(tmp_path / 'w', step)
  with pytest.raises(checkpoints.Damaged, match=f'{step}: is damaged: its'):
    train('pretrain', config, str(tmp_path / 'w'))


def test_a_version_of_another_embedder_is_refused(
  tmp_path, corpus, monkeypatch
):
  config = make_config(corpus, refresh={'where': 'in_process', 'every': 5})
  small_runs.terminate_at(monkeypatch, 3)
  assert train('pretrain', config, str(tmp_path / 'w')) == 75
  monkeypatch.undo()
  used = swaps(tmp_path / 'w')[-1]
  true = small_runs.forge_digest(tmp_path / 'w', used[2])
  with pytest.raises(ValueError, match=f'is {true}, expected {"f" * 64}'):
    train('pretrain', config, str(tmp_path / 'w'))
