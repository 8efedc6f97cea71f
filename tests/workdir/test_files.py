import json
import os
import subprocess
import sys
import time

import pytest

from realm_jax.workdir import files


def test_json_is_replaced_whole_and_leaves_nothing(tmp_path):
  path = tmp_path / 'a.json'
  files.write_json(path, {'a': 1})
  files.write_json(path, {'a': 2})
  assert files.read_json(path) == {'a': 2}
  with pytest.raises(ValueError, match='JSON'):
    files.write_json(path, {'a': float('nan')})
  assert files.read_json(path) == {'a': 2}
  assert os.listdir(tmp_path) == ['a.json']


def test_broken_json_names_the_file(tmp_path):
  (tmp_path / 'a.json').write_text('{"a": ')
  with pytest.raises(ValueError, match=r'a\.json: not a JSON file'):
    files.read_json(tmp_path / 'a.json')


_WRITE = """
import sys
from realm_jax.workdir import files
path, log = sys.argv[1], files.LineLog(sys.argv[1] + 'l')
print('ready', flush=True)
for number in range(5000):
  value = {'number': number, 'text': 'x' * 9000}
  files.write_json(path, value)
  log.append(value)
"""


def test_kill_in_mid_write_leaves_whole_files(tmp_path):
  path, lines = tmp_path / 'a.json', tmp_path / 'a.jsonl'
  for delay in (0.05, 0.061, 0.077):
    with subprocess.Popen(
      [sys.executable, '-c', _WRITE, path], stdout=subprocess.PIPE
    ) as process:
      try:
        assert process.stdout.readline() == b'ready\n'
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline:  # a reader beside the writer
          if path.exists():
            assert len(files.read_json(path)['text']) == 9000
          assert all(len(x['text']) == 9000 for x in files.read_lines(lines))
      finally:
        process.kill()
    assert len(files.read_json(path)['text']) == 9000
    # What the next writer appends is a line of its own.
    files.LineLog(lines).append({'number': -1, 'text': 'x' * 9000})
    assert all(len(x['text']) == 9000 for x in files.read_lines(lines))


def test_a_torn_last_line_is_not_there(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"step": 1}\n{"step": 2}\n{"st')
  assert files.read_lines(path) == [{'step': 1}, {'step': 2}]
  log = files.LineLog(path)
  log.append({'step': 3})
  assert files.read_lines(path) == [{'step': 1}, {'step': 2}, {'step': 3}]
  log.keep(lambda line: line['step'] != 2)
  assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_a_bad_line_is_named(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
  with pytest.raises(ValueError, match=r'a\.jsonl:2: not JSON'):
    files.read_lines(path)
  path.write_text('3\n')
  with pytest.raises(ValueError, match=r'a\.jsonl:1: expected a JSON object'):
    files.read_lines(path)


def test_a_line_that_does_not_fit_leaves_no_half(tmp_path):
  code = """
import resource, signal, sys
from realm_jax.workdir import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = files.LineLog(sys.argv[1])
log.append({'a': 'x' * 50})
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
  log.append({'a': 'x' * 50})
except OSError:
  log.append({'a': 'x'})
"""
  path = tmp_path / 'a.jsonl'
  subprocess.run([sys.executable, '-c', code, path], check=True)
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert lines == [{'a': 'x' * 50}, {'a': 'x'}]


_HOLD = """
import sys
from realm_jax.workdir import files
with files.lock(sys.argv[1], 'trainer'):
  print('held', flush=True)
  sys.stdin.read()
"""


def test_lock_is_one_writer_until_it_dies(tmp_path):
  with subprocess.Popen(
    [sys.executable, '-c', _HOLD, tmp_path],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as process:
    try:
      assert process.stdout.readline() == b'held\n'
      held = rf'another trainer is running in {tmp_path} .*{process.pid} on'
      with pytest.raises(ValueError, match=held):
        files.lock(tmp_path, 'trainer').__enter__()
      with files.lock(tmp_path, 'refresher'):  # another role is free
        pass
    finally:
      process.kill()
  with files.lock(tmp_path, 'trainer'):
    pass
  with files.lock(tmp_path, 'trainer'):  # and was let go
    pass
