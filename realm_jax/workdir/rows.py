"""The rows of an index version: a zarr3 array [N, E] in chunks of rows.

Writing takes four steps: one process picks `versions.next_version` under the
refresher's lock; every process writes its `owned_rows` and calls `finish`;
when all have, one calls `commit`. Every chunk is a file with a checksum in the
manifest, so that one that is torn or swapped is found and named.
"""

import zlib
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts
from etils import epath

from realm_jax.workdir import files, versions

CHUNK_ROWS = 16384
_IN_FLIGHT = 8  # chunks being read or written at a time
_PARTS = 'parts'
# TensorStore's codes for a file that is there but is not what it should be:
# checksum or JSON, length, or that is missing.
_DAMAGED = ('DATA_LOSS', 'FAILED_PRECONDITION', 'NOT_FOUND')


def owned_rows(
  rows: int,
  process_index: int,
  process_count: int,
  chunk_rows: int = CHUNK_ROWS,
) -> tuple[int, int]:
  """The rows [start, stop) that a process writes: whole chunks."""
  chunks = -(-rows // chunk_rows)
  first = chunks * process_index // process_count
  last = chunks * (process_index + 1) // process_count
  return min(first * chunk_rows, rows), min(last * chunk_rows, rows)


class PartFiles(NamedTuple):
  """What a kind of index has beside its rows; see versions.Manifest."""

  options: dict[str, Any]
  files: dict[str, int]
  bytes: int


class VersionWriter:
  """Writes a version; every process that writes rows has one.

  Args:
    index: Workdir.index.
    version: from next_version, the same in all processes.
    rows: N.
    dim: E.
    dtype: float32 or bfloat16.
    chunk_rows: rows a chunk. A chunk is written by one process.
  """

  def __init__(
    self,
    index: epath.PathLike,
    version: int,
    *,
    rows: int,
    dim: int,
    dtype: str,
    chunk_rows: int = CHUNK_ROWS,
  ):
    if rows < 1 or dim < 1:
      raise ValueError(f'{index}: {rows} rows of {dim} dimensions, needs some')
    if dtype not in ('float32', 'bfloat16'):
      raise ValueError(f'index dtype {dtype!r}: choose float32 or bfloat16')
    self._index = epath.Path(index)
    self._version = version
    self._rows, self._dim, self._dtype = rows, dim, dtype
    self.chunk_rows = chunk_rows
    self._open: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    self._checksums: dict[int, int] = {}
    self._futures: list[tuple[int, ts.Future]] = []
    self._path = versions.directory(index, version)
    if (self._path / 'manifest.json').exists():
      raise ValueError(f'{self._path}: is committed already')
    (self._path / _PARTS).mkdir(parents=True, exist_ok=True)
    metadata = {
      'shape': [rows, dim],
      'chunk_grid': {
        'name': 'regular',
        'configuration': {'chunk_shape': [chunk_rows, dim]},
      },
      'data_type': dtype,
      # Rows are finite: one that was never written cannot pass for one.
      'fill_value': 'NaN',
      'codecs': [
        {'name': 'bytes', 'configuration': {'endian': 'little'}},
        {'name': 'crc32c'},
      ],
    }
    try:
      self._array = _open_rows(
        self._path, create=True, open=True, metadata=metadata
      )
    except ValueError as error:  # TensorStore's for every kind of failure
      raise OSError(f'{self._path}: could not be made: {error}') from error

  def write(self, start: int, rows_nE: np.ndarray) -> None:
    """Takes rows; a chunk goes to disk when its last row has come.

    Args:
      start: number of the first row.
      rows_nE: consecutive rows, in the version's dtype.

    Raises:
      ValueError: rows that do not fit, came before, or are not finite.
      OSError: an earlier chunk could not be written.
    """
    stop = start + len(rows_nE)
    if (
      rows_nE.shape[1:] != (self._dim,) or not 0 <= start <= stop <= self._rows
    ):
      raise ValueError(
        f'{self._path}: {rows_nE.shape} at row {start} does not fit in '
        f'{(self._rows, self._dim)}'
      )
    if str(rows_nE.dtype) != self._dtype:
      raise ValueError(
        f'{self._path}: rows of {rows_nE.dtype}, expected {self._dtype}'
      )
    _check_finite(self._path, start, rows_nE)
    while start < stop:
      chunk, offset = divmod(start, self.chunk_rows)
      count = min(self.chunk_rows - offset, stop - start)
      self._take(chunk, offset, rows_nE[:count])
      start, rows_nE = start + count, rows_nE[count:]

  def finish(self) -> None:
    """Waits for the disk and leaves this process's checksums for `commit`.

    Raises:
      ValueError: a chunk has rows that never came.
      OSError: a chunk could not be written.
    """
    if self._open:
      chunk, (_, seen) = next(iter(self._open.items()))
      row = chunk * self.chunk_rows + int(np.argmin(seen))
      raise ValueError(f'{self._path}: row {row} was not written')
    self._wait(0)
    if self._checksums:
      files.write_json(
        self._path / _PARTS / f'{min(self._checksums)}.json', self._checksums
      )

  def read(self, start: int, stop: int) -> np.ndarray:
    """Rows that all processes have written, before the commit."""
    return self._array[start:stop].read().result()

  def discard(self) -> None:
    """Takes part in giving up the version: nothing is written after it.

    The directory is deleted by one process, after all have called this
    (versions.remove_uncommitted).
    """
    for _, future in self._futures:
      # What became of it does not matter any more.
      future.exception()
    self._futures, self._open = [], {}

  def commit(
    self,
    *,
    checkpoint_step: int,
    embedder_digest: str,
    corpus_fingerprint: str,
    tokenizer_digest: str,
    kind: str,
    recall: dict[str, float] | None,
    build_seconds: float,
    parts: PartFiles | None = None,
  ) -> versions.Manifest:
    """Makes the version visible; by one process, after all have finished.

    Returns:
      The manifest (see versions.Manifest for the arguments).

    Raises:
      ValueError: chunks are missing.
    """
    found: dict[int, int] = {}
    for part in (self._path / _PARTS).iterdir():
      found.update({int(c): crc for c, crc in files.read_json(part).items()})
    chunks = range(-(-self._rows // self.chunk_rows))
    if missing := sorted(set(chunks) - set(found)):
      raise ValueError(f'{self._path}: chunks {missing} were not written')
    manifest = versions.Manifest(
      version=self._version,
      checkpoint_step=checkpoint_step,
      embedder_digest=embedder_digest,
      corpus_fingerprint=corpus_fingerprint,
      tokenizer_digest=tokenizer_digest,
      kind=kind,
      rows=self._rows,
      dim=self._dim,
      dtype=self._dtype,
      chunk_rows=self.chunk_rows,
      checksums={'rows': [found[chunk] for chunk in chunks]},
      recall=recall,
      build_seconds=build_seconds,
      **(parts._asdict() if parts else {}),
    )
    (self._path / _PARTS).rmtree()
    versions.write_manifest(self._index, manifest)
    return manifest

  def _take(self, chunk: int, offset: int, rows: np.ndarray) -> None:
    first = chunk * self.chunk_rows
    size = min(self.chunk_rows, self._rows - first)
    if chunk not in self._open and chunk not in self._checksums:
      self._open[chunk] = (
        np.empty((size, self._dim), rows.dtype),
        np.zeros(size, bool),
      )
    if chunk in self._checksums or (
      self._open[chunk][1][offset : offset + len(rows)].any()
    ):
      raise ValueError(
        f'{self._path}: rows from {first + offset} were written before'
      )
    data, seen = self._open[chunk]
    data[offset : offset + len(rows)] = rows
    seen[offset : offset + len(rows)] = True
    if seen.all():
      del self._open[chunk]
      self._checksums[chunk] = zlib.crc32(data.tobytes())
      self._futures.append(
        (chunk, self._array[first : first + size].write(data).commit)
      )
      self._wait(_IN_FLIGHT)

  def _wait(self, left: int) -> None:
    while len(self._futures) > left:
      chunk, future = self._futures.pop(0)
      try:
        future.result()
      except ValueError as error:  # TensorStore's for every kind of failure
        raise OSError(
          f'{_chunk_file(self._path, chunk)}: could not be written: {error}'
        ) from error


def read_rows(
  index: epath.PathLike,
  version: int,
  start: int,
  stop: int,
  verify: bool = True,
) -> np.ndarray:
  """Reads rows of a committed version.

  Args:
    index: Workdir.index.
    version: a committed version.
    start: first row.
    stop: row after the last.
    verify: compare each chunk with the manifest's checksum.

  Returns:
    rows [stop - start, E] in the version's dtype.

  Raises:
    FileNotFoundError: the version is not there (any more).
    OSError: a file could not be read.
    versions.Damaged: a chunk is missing, torn or not the one that was written;
      names its file. A row is not finite; names the row.
    ValueError: rows out of range.
  """
  manifest = versions.read_manifest(index, version)
  if not 0 <= start <= stop <= manifest.rows:
    raise ValueError(
      f'index version {version}: rows {start} to {stop}, has {manifest.rows}'
    )
  path = versions.directory(index, version)
  try:
    return _read_rows(path, manifest, start, stop, verify)
  except (ValueError, OSError) as error:
    if not (path / 'manifest.json').exists():
      raise FileNotFoundError(f'{path}: deleted while it was read') from error
    raise


def _read_rows(
  path: epath.Path,
  manifest: versions.Manifest,
  start: int,
  stop: int,
  verify: bool,
) -> np.ndarray:
  size = manifest.chunk_rows
  chunks = list(range(start // size, -(-stop // size) if stop > start else 0))
  metadata = path / 'rows' / 'zarr.json'
  try:
    array = _open_rows(path, open=True)
  except ValueError as error:
    raise _problem(metadata, error) from error
  found = (*array.shape, array.dtype.name)
  if found != (want := (manifest.rows, manifest.dim, manifest.dtype)):
    raise versions.Damaged(
      f'{metadata}: is not what was written: it says {found}, the manifest '
      f'{want}'
    )
  out = np.empty((stop - start, manifest.dim), array.dtype.numpy_dtype)
  pending: list[ts.Future] = []
  for position, chunk in enumerate(chunks):
    while len(pending) < _IN_FLIGHT and position + len(pending) < len(chunks):
      first = chunks[position + len(pending)] * size
      pending.append(array[first : min(first + size, manifest.rows)].read())
    data = _chunk_data(path, chunk, pending.pop(0), manifest, verify)
    first = chunk * size
    low, high = max(start, first), min(stop, first + len(data))
    _check_finite(path, first, data, versions.Damaged)
    out[low - start : high - start] = data[low - first : high - first]
  return out


def _check_finite(
  path: epath.Path,
  start: int,
  rows_nE: np.ndarray,
  error: type[ValueError] = ValueError,
) -> None:
  finite_n = np.isfinite(rows_nE.astype(np.float32, copy=False)).all(axis=1)
  if not finite_n.all():
    raise error(
      f'{path}: row {start + int(np.argmin(finite_n))} is not finite '
      f'({np.count_nonzero(~finite_n)} of {len(rows_nE)} are not)'
    )


def _chunk_data(
  path: epath.Path,
  chunk: int,
  future: ts.Future,
  manifest: versions.Manifest,
  verify: bool,
) -> np.ndarray:
  file = _chunk_file(path, chunk)
  try:
    data = future.result()
  except ValueError as error:
    raise _problem(file, error) from error
  if verify:
    found, want = zlib.crc32(data.tobytes()), manifest.checksums['rows'][chunk]
    if found != want:
      what = (
        f'crc32 is {found}, the manifest has {want}'
        if file.exists()
        else 'the file is missing'
      )
      raise versions.Damaged(f'{file}: is not what was written: {what}')
  return data


def _problem(file: epath.Path, error: ValueError) -> Exception:
  """What TensorStore's one exception for every kind of failure means."""
  if str(error).startswith(_DAMAGED):
    return versions.Damaged(f'{file}: is damaged: {error}')
  return OSError(f'{file}: could not be read: {error}')


def _open_rows(path: epath.Path, **options: Any) -> ts.TensorStore:
  rows = path / 'rows'
  kvstore: Any = f'{rows}/'
  if files.is_local(rows):
    kvstore = {'driver': 'file', 'path': f'{rows.resolve()}/'}
  spec = {'driver': 'zarr3', 'kvstore': kvstore}
  return ts.open({**spec, **options}).result()


def _chunk_file(path: epath.Path, chunk: int) -> epath.Path:
  return path / 'rows' / 'c' / str(chunk) / '0'
