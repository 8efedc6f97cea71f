"""Leases on index versions: of the living, and of the dead."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from realm_jax.workdir import leases

HOLD = (
  'import sys, time; from realm_jax.workdir import leases\n'
  'with leases.hold(sys.argv[1], "reader", [3]):\n'
  '  print("held", flush=True); time.sleep(600)'
)


def test_a_lease_lasts_as_long_as_its_context(tmp_path):
  assert leases.leased(tmp_path) == set()
  with leases.hold(tmp_path, 'reader', [2, 5]) as lease:
    assert leases.leased(tmp_path) == {2, 5}
    with leases.hold(tmp_path, 'reader', [1]):
      assert leases.leased(tmp_path) == {1, 2, 5}
    lease.take([7])
    assert leases.leased(tmp_path) == {7}
    assert not leases.refresher_lives(tmp_path)
  with leases.hold(tmp_path, 'refresher'):
    assert leases.refresher_lives(tmp_path)
  assert not leases.refresher_lives(tmp_path)
  assert [p.suffix for p in (tmp_path / 'leases').iterdir()] in ([], ['.clock'])


def test_of_a_killed_process_nothing_is_left(tmp_path):
  reader = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)], stdout=subprocess.PIPE
  )
  with reader:
    assert reader.stdout is not None
    assert reader.stdout.readline() == b'held\n'
    assert leases.leased(tmp_path) == {3}
    reader.send_signal(signal.SIGKILL)
    reader.wait()
  assert leases.leased(tmp_path) == set()
  assert list((tmp_path / 'leases').glob('*.json')) == []


@pytest.mark.parametrize('name', ['reader-x.json', '.reader-x.json'])
def test_another_machine_s_lease_expires(tmp_path, name, monkeypatch):
  directory = tmp_path / 'leases'
  directory.mkdir()
  values = {'role': 'reader', 'versions': [4], 'kernel': 'another'}
  file = directory / name
  file.write_text(json.dumps(values))
  held = set() if name.startswith('.') else {4}
  assert leases.leased(tmp_path) == held and file.exists()
  # What this machine's clock says does not matter.
  monkeypatch.setattr(time, 'time', lambda: 0.0)
  assert leases.leased(tmp_path) == held and file.exists()
  now = file.stat().st_mtime
  os.utime(file, (now - 800, now - 800))
  assert leases.leased(tmp_path) == held and file.exists()
  os.utime(file, (now - 1000, now - 1000))
  assert leases.leased(tmp_path) == set()
  assert not file.exists()


def test_a_torn_lease_is_none(tmp_path):
  (tmp_path / 'leases').mkdir()
  file = tmp_path / 'leases' / 'reader-x.json'
  file.write_text('')
  assert leases.leased(tmp_path) == set() and file.exists()
  assert not leases.refresher_lives(tmp_path)
  os.utime(file, (0, 0))
  assert leases.leased(tmp_path) == set() and not file.exists()


def test_a_lease_that_was_taken_for_dead_is_taken_again(tmp_path, monkeypatch):
  monkeypatch.setattr(leases, '_BEAT_SECONDS', 0.01)
  with leases.hold(tmp_path, 'reader', [1]):
    [file] = (tmp_path / 'leases').glob('*.json')
    file.unlink()
    deadline = time.monotonic() + 10
    while leases.leased(tmp_path) != {1}:
      assert time.monotonic() < deadline
      time.sleep(0.01)
  assert list((tmp_path / 'leases').glob('*.json')) == []


def test_a_lease_is_touched(tmp_path, monkeypatch):
  monkeypatch.setattr(leases, '_BEAT_SECONDS', 0.01)
  touch, failures = os.utime, [OSError(), RuntimeError('HTTP 503')]

  def fail_first(path, *times):
    if not times and failures:
      raise failures.pop()
    touch(path, *times)

  monkeypatch.setattr(leases.os, 'utime', fail_first)
  with leases.hold(tmp_path, 'reader', [1]):
    [file] = (tmp_path / 'leases').glob('*.json')
    os.utime(file, (0, 0))
    deadline = time.monotonic() + 10
    while file.stat().st_mtime == 0:
      assert time.monotonic() < deadline
      time.sleep(0.01)
  assert not failures
