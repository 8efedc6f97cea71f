"""Parts that are done once."""

import pytest

from realm_jax.jobs.progress import Progress


def test_what_is_done_is_not_done_again(tmp_path):
  path = str(tmp_path / 'run')
  first = Progress(path, {'seed': 0})
  assert first.once('a', lambda: {'score': 1.5}) == {'score': 1.5}
  with pytest.raises(OSError, match='full'):
    first.once('b', fail)
  seconds = first.seconds()
  again = Progress(path, {'seed': 0})
  assert again.once('a', fail) == {'score': 1.5}
  assert again.once('b', lambda: 2) == 2
  assert again.seconds() >= seconds


def fail():
  raise OSError('the disk is full')


def test_other_settings_are_refused(tmp_path):
  Progress(str(tmp_path), {'seed': 0, 'size': 'small'})
  Progress(str(tmp_path), {'seed': 0, 'size': 'small'})
  with pytest.raises(
    ValueError, match='begun with --seed 0 --size small; give'
  ):
    Progress(str(tmp_path), {'seed': 1, 'size': 'small'})


def test_a_file_is_refused(tmp_path):
  (tmp_path / 'run').write_text('mine')
  with pytest.raises(ValueError, match='run: is a file, expected a directory'):
    Progress(str(tmp_path / 'run'), {'seed': 0})


def test_a_directory_with_other_files_is_refused(tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  with pytest.raises(ValueError, match='is not empty'):
    Progress(str(tmp_path), {'seed': 0})
  assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']
