"""Real processes that are killed, starved or started twice."""

import resource
import subprocess
import time

import disturbed
import pytest
import small_runs

from realm_jax.workdir import versions

pytestmark = pytest.mark.faults


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


def flip(data):
  """One bit of the middle."""
  place = len(data) // 2
  return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def truncate(data):
  return data[:-9]


def check_disturbed(run, kills, capsys, damages=()):
  began = time.monotonic()
  try:
    run.start()
    run.kill(kills)
    run.stall(5)
    run.age_leases()
    for how in damages:
      run.damage(how)
    last = run.end()
    counts = disturbed.check_workdir(run.workdir)
    want = run.replay(last)
  finally:
    run.kill_all()
  found = [x for x in disturbed.losses(run.workdir) if x[0] <= last]
  assert found == want[: len(found)] and len(found) >= last - 1
  counts |= run.counts | {'seconds': round(time.monotonic() - began)}
  with capsys.disabled():
    print(f'\n{dict(counts)}')


def test_killed_runs_equal_undisturbed_ones(tmp_path, cache, capsys):
  run = disturbed.Disturbed(tmp_path, cache, 0, 1)
  check_disturbed(run, 5, capsys, damages=(flip, truncate))


@pytest.mark.slow
def test_what_is_in_use_stays_whatever_happens(tmp_path, cache, capsys):
  run = disturbed.Disturbed(tmp_path, cache, 4, 1, keep=1)
  try:
    run.start()
    version, lease = run.hold_a_version()
    run.start_a_second_refresher()
    run.age_leases()
    run.damage(flip)
    run.kill(3)
    run.age_leases()
    run.end()
    assert version in versions.list_versions(run.workdir / 'index')
    lease.end()
    run.start()
    run.end()
    assert version not in versions.list_versions(run.workdir / 'index')
    counts = disturbed.check_workdir(run.workdir, keep=1)
  finally:
    run.kill_all()
  with capsys.disabled():
    print(f'\n{counts | dict(run.counts)}')


@pytest.mark.slow
@pytest.mark.parametrize('seed, size', [(1, 1), (2, 2)])
def test_twenty_kills_each(tmp_path, cache, capsys, seed, size):
  check_disturbed(disturbed.Disturbed(tmp_path, cache, seed, size), 20, capsys)


@pytest.mark.slow
def test_soak(tmp_path, cache, capsys):
  """Half an hour and more; `-s -k soak` shows its counts."""
  # Five seconds a kill in the mean.
  check_disturbed(disturbed.Disturbed(tmp_path, cache, 3, 1), 400, capsys)


def test_a_full_disk_leaves_nothing(tmp_path, cache):
  corpus = small_runs.make_corpus(tmp_path)
  experiment = small_runs.write_experiment(
    tmp_path / 'x.py', corpus, num_steps=1, model={'retrieval_size': 64}
  )
  workdir = tmp_path / 'w'
  train = ['ict', '--config', experiment, '--workdir', str(workdir)]
  process = small_runs.start(train, cache, stderr=subprocess.PIPE)
  statuses, said = small_runs.finish([process])
  assert statuses == [0], said
  # 30 rows of 64 bfloat16 are 3,840 bytes; no file may grow as large.
  process = small_runs.start(
    ['refresh', '--workdir', str(workdir)],
    cache,
    stderr=subprocess.PIPE,
  )
  # Before it has come to write: it imports JAX first.
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (3000, 3000))
  statuses, said = small_runs.finish([process])
  assert statuses == [1], said
  last = said[0].splitlines()[-1]
  assert last.startswith('error: ') and '/rows/c/0/0: could not be' in last
  assert list((workdir / 'index').iterdir()) == []
  assert not list((workdir / 'leases').glob('*.json'))
