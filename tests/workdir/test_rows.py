import contextlib
import os
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from realm_jax.workdir import rows, versions

FIELDS = {
  'checkpoint_step': 7,
  'embedder_digest': 'ee',
  'corpus_fingerprint': 'cc',
  'tokenizer_digest': 'tt',
  'kind': 'exact',
  'recall': None,
  'build_seconds': 1.5,
}


def make_writer(index, version, n, dtype='float32'):
  return rows.VersionWriter(
    index, version, rows=n, dim=8, dtype=dtype, chunk_rows=16
  )


def chunk_file(index, version, chunk):
  return index / f'{version:06d}' / 'rows' / 'c' / str(chunk) / '0'


@pytest.fixture
def data():
  return np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)


@pytest.fixture
def index(tmp_path, data):
  for version in (1, 2):
    writer = make_writer(tmp_path, version, 100)
    writer.write(0, data * version)
    writer.finish()
    writer.commit(**FIELDS)
  return tmp_path


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize('n, count', [(1, 3), (16, 2), (100, 3), (97, 1)])
def test_several_writers_make_one_version(tmp_path, data, n, count, dtype):
  data = data[:n].astype(dtype)
  writers = [
    make_writer(tmp_path, 1, n, np.dtype(dtype).name) for _ in range(count)
  ]
  covered = 0
  for number, writer in enumerate(writers):
    start, stop = rows.owned_rows(n, number, count, chunk_rows=16)
    assert start == covered
    covered = stop
    for first in range(start, stop, 7):  # batches that do not fit chunks
      writer.write(first, data[first : min(first + 7, stop)])
    writer.finish()
  assert covered == n
  assert versions.list_versions(tmp_path) == []  # not before the commit
  writers[-1].commit(**FIELDS)
  for start, stop in [(0, n), (n // 3, n), (n - 1, n), (n // 2, n // 2)]:
    read = rows.read_rows(tmp_path, 1, start, stop)
    assert read.dtype == dtype
    np.testing.assert_array_equal(
      read.view(np.uint8), data[start:stop].view(np.uint8)
    )


def test_bytes_on_disk_are_those_of_the_rows(index):
  size = sum(
    os.path.getsize(os.path.join(folder, name))
    for folder, _, names in os.walk(index / '000001' / 'rows' / 'c')
    for name in names
  )
  # Seven chunks of 16 rows (the last is padded), 4 bytes of crc32c each.
  assert size == 7 * (16 * 8 * 4 + 4)


def test_a_version_that_is_not_whole_is_not_committed(tmp_path, data):
  writer = make_writer(tmp_path, 1, 100)
  writer.write(0, data[:70])
  with pytest.raises(ValueError, match='row 70 was not written'):
    writer.finish()
  other = make_writer(tmp_path, 2, 100)
  other.write(0, data[:32])
  other.finish()
  with pytest.raises(ValueError, match=r'chunks \[2, 3, 4, 5, 6\] were not'):
    other.commit(**FIELDS)
  assert versions.list_versions(tmp_path) == []


def test_rows_that_cannot_be_right_are_refused(tmp_path, data):
  writer = make_writer(tmp_path, 1, 100)
  writer.write(0, data[:20])
  for start in (19, 3):  # of a chunk still open, of one on disk
    with pytest.raises(ValueError, match='were written before'):
      writer.write(start, data[:1])
  with pytest.raises(ValueError, match=r'at row 95 does not fit in \(100, 8\)'):
    writer.write(95, data[:6])
  with pytest.raises(ValueError, match=r'\(2, 4\) at row 50 does not fit'):
    writer.write(50, data[:2, :4])
  with pytest.raises(ValueError, match='rows of float64, expected float32'):
    writer.write(50, data[:2].astype(np.float64))
  data[41, 3] = np.nan
  with pytest.raises(ValueError, match='row 61 is not finite'):
    writer.write(60, data[40:44])
  with pytest.raises(ValueError, match="dtype 'int8': choose"):
    make_writer(tmp_path, 2, 100, 'int8')


def test_no_index_of_nothing(tmp_path):
  with pytest.raises(ValueError, match='0 rows of 8 dimensions, needs some'):
    make_writer(tmp_path, 1, 0)


def test_rows_that_are_not_finite_are_not_read(tmp_path, data, monkeypatch):
  """Somebody else's writer may have let them in, checksums and all."""
  data[[17, 90], 3] = np.inf
  monkeypatch.setattr(rows, '_check_finite', lambda *_: None)
  writer = make_writer(tmp_path, 1, 100)
  writer.write(0, data)
  writer.finish()
  writer.commit(**FIELDS)
  monkeypatch.undo()
  with pytest.raises(ValueError, match=r'row 17 is not finite \(1 of 16 are'):
    rows.read_rows(tmp_path, 1, 0, 100)


def test_a_committed_version_is_not_written_again(index):
  with pytest.raises(ValueError, match='is committed already'):
    make_writer(index, 1, 100)


@pytest.mark.parametrize('verify', [True, False])
@pytest.mark.parametrize('byte', [0, 300, -1])
def test_a_flipped_bit_is_found_and_named(index, byte, verify):
  file = chunk_file(index, 2, 3)
  content = bytearray(file.read_bytes())
  content[byte] ^= 4
  file.write_bytes(content)
  rows.read_rows(index, 2, 0, 48)  # chunks 0 to 2 are well
  rows.read_rows(index, 2, 64, 100)
  with pytest.raises(ValueError, match=f'{file}: is damaged'):
    rows.read_rows(index, 2, 0, 100, verify=verify)


def test_torn_swapped_and_missing_chunks_are_found_and_named(index):
  file = chunk_file(index, 2, 3)
  good = file.read_bytes()
  file.write_bytes(good[:100])
  with pytest.raises(ValueError, match=f'{file}: is damaged'):
    rows.read_rows(index, 2, 50, 51)
  # Well in itself, but of another version, or another place.
  for other in (chunk_file(index, 1, 3), chunk_file(index, 2, 4)):
    shutil.copy(other, file)
    with pytest.raises(ValueError, match=rf'{file}: .* the manifest has \d+'):
      rows.read_rows(index, 2, 50, 51)
  file.unlink()
  with pytest.raises(ValueError, match=f'{file}: .* the file is missing'):
    rows.read_rows(index, 2, 50, 51)
  file.write_bytes(good)
  rows.read_rows(index, 2, 0, 100)


@pytest.mark.parametrize(
  'old, new', [('100', '90'), ('"float32"', '"'), ('', '')]
)
def test_a_damaged_description_is_found_and_named(index, old, new):
  file = versions.directory(index, 2) / 'rows' / 'zarr.json'
  text = file.read_text().replace(old, new) if old else ''
  file.write_text(text)
  with pytest.raises(ValueError) as raised:
    rows.read_rows(index, 2, 0, 10)
  assert str(file) in str(raised.value)
  file.unlink()
  with pytest.raises(ValueError) as raised:
    rows.read_rows(index, 2, 0, 10)
  assert str(file.parent) in str(raised.value)


def test_rows_out_of_range_are_refused(index):
  for start, stop in ((-1, 3), (0, 101), (5, 4)):
    with pytest.raises(ValueError, match='has 100'):
      rows.read_rows(index, 1, start, stop)


_WRITE = """
import sys
import numpy as np
from realm_jax.workdir import rows, versions
index = sys.argv[1]
while True:
  version = versions.next_version(index)
  writer = rows.VersionWriter(
    index, version, rows=2000, dim=8, dtype='float32', chunk_rows=100)
  print('started', flush=True)
  for start in range(0, 2000, 50):
    writer.write(start, np.full((50, 8), version, np.float32))
  writer.finish()
  writer.commit(checkpoint_step=version, embedder_digest='e',
    corpus_fingerprint='c', tokenizer_digest='t', kind='exact', recall=None,
    build_seconds=0.)
  versions.prune(index, keep=2, in_use=set)
"""


def test_kill_in_mid_write_leaves_whole_versions(tmp_path):
  """A reader beside a writer that is killed: every version is its own."""
  for kills in range(3):
    with subprocess.Popen(
      [sys.executable, '-c', _WRITE, tmp_path], stdout=subprocess.PIPE
    ) as process:
      try:
        for _ in range(4 + kills):
          assert process.stdout.readline() == b'started\n'
        for version in versions.list_versions(tmp_path)[-1:]:
          # The writer does not wait for a reader that holds no lease.
          with contextlib.suppress(FileNotFoundError):
            read = rows.read_rows(tmp_path, version, 0, 2000)
            assert (read == version).all()
      finally:
        process.kill()
    versions.remove_uncommitted(tmp_path)
    left = versions.list_versions(tmp_path)
    assert left == sorted(int(path.name) for path in tmp_path.iterdir())
    assert 2 <= len(left) <= 3  # killed before it could prune
    for version in left:
      assert (rows.read_rows(tmp_path, version, 0, 2000) == version).all()


def test_deleted_while_it_is_read_is_not_damage(index, monkeypatch):
  chunk_data = rows._chunk_data

  def delete_first(*args):
    versions.prune(index, keep=1, in_use=set)
    return chunk_data(*args)

  monkeypatch.setattr(rows, '_chunk_data', delete_first)
  monkeypatch.setattr(rows, '_IN_FLIGHT', 1)
  with pytest.raises(FileNotFoundError, match='deleted while it was read'):
    rows.read_rows(index, 1, 0, 100)


def test_a_full_disk_is_an_os_error_and_nothing_is_visible(tmp_path):
  code = """
import resource, signal, sys
import numpy as np
from realm_jax.workdir import rows
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = rows.VersionWriter(
  sys.argv[1], 1, rows=5000, dim=8, dtype='float32', chunk_rows=500)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
  writer.write(0, np.ones((5000, 8), np.float32))
  writer.finish()
except OSError as error:
  print(error)
"""
  done = subprocess.run(
    [sys.executable, '-c', code, tmp_path], check=True, capture_output=True
  )
  assert b'rows/c/0/0: could not be written' in done.stdout
  assert versions.list_versions(tmp_path) == []
  assert versions.remove_uncommitted(tmp_path) == [1]
  assert list(tmp_path.iterdir()) == []
