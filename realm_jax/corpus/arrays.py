"""The arrays of a corpus store: what each holds, and how it is opened.

All of them only grow, at the end: a committed row never changes, so a reader
of any generation needs nothing but its lengths.
"""

import dataclasses
import os
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath


@dataclasses.dataclass(frozen=True)
class Layout:
  """Shape and storage of an array.

  Attributes:
    columns: size of the second axis; 0: there is none.
    dtype: numpy's name of the element type.
    shard: rows of a file.
    chunk: rows that are compressed (and so read) together.
  """

  columns: int
  dtype: str
  shard: int
  chunk: int


def layouts(block_length: int, vocab_size: int) -> dict[str, Layout]:
  """The arrays by name.

  Rows: N blocks, D documents, S sentences, P salient spans. Ends are
  exclusive, and each range starts where the one before it ends.

  Args:
    block_length: wordpieces of a block, L.
    vocab_size: sets the type of the token ids.

  Returns:
    tokens [N, L]: `[CLS] title [SEP] body [SEP]`, padded with 0.
    block [N, 3]: end of its text in `text`, end of its sentences in
      `sentence`, number of its document.
    text: UTF-8 of all blocks, each a slice of its document's text.
    document [D, 2]: ends of its id and of its title in `document_text`.
    document_text: UTF-8.
    sentence [S, 3]: start and end in the block's body, in wordpieces, and end
      of its spans in `span`.
    sentence_hash [S]: of its token ids.
    span [P, 2]: start and end in the block's body, in wordpieces.
    removed: numbers of blocks that were removed, in the order of removal.
  """
  return {
    'tokens': Layout(block_length, token_type(vocab_size), 8192, 32),
    'block': Layout(3, 'int64', 65536, 1024),
    'text': Layout(0, 'uint8', 1 << 22, 1 << 14),
    'document': Layout(2, 'int64', 65536, 1024),
    'document_text': Layout(0, 'uint8', 1 << 22, 1 << 14),
    'sentence': Layout(3, 'int64', 65536, 4096),
    'sentence_hash': Layout(0, 'uint64', 1 << 18, 1 << 14),
    'span': Layout(2, 'int32', 1 << 18, 1 << 14),
    'removed': Layout(0, 'int64', 65536, 4096),
  }


def token_type(vocab_size: int) -> str:
  """The type of token ids, in a store and in the index's token table."""
  return 'uint16' if vocab_size <= 1 << 16 else 'int32'


def create(path: str, name: str, layout: Layout) -> None:
  """Makes an empty array of the store at `path`."""
  row = [layout.columns] if layout.columns else []
  little_endian = {'name': 'bytes', 'configuration': {'endian': 'little'}}
  _open(
    path,
    name,
    {
      'create': True,
      'metadata': {
        'shape': [0, *row],
        'data_type': layout.dtype,
        'fill_value': 0,
        'chunk_grid': {
          'name': 'regular',
          'configuration': {'chunk_shape': [layout.shard, *row]},
        },
        'codecs': [
          {
            'name': 'sharding_indexed',
            'configuration': {
              'chunk_shape': [layout.chunk, *row],
              'codecs': [
                little_endian,
                {'name': 'zstd', 'configuration': {'level': 1}},
                {'name': 'crc32c'},
              ],
              'index_codecs': [little_endian, {'name': 'crc32c'}],
            },
          }
        ],
      },
    },
  )


def open_to_read(path: str, name: str, context: ts.Context) -> ts.TensorStore:
  """Opens an array; what was read once may be kept in `context`'s cache.

  Raises:
    ValueError: the array is not there or damaged.
  """
  # A row never changes, so cached data stay right.
  return _open(
    path,
    name,
    {'open': True, 'recheck_cached_data': False},
    context=context,
    read=True,
    write=False,
  )


def read(array: Any, store: str) -> np.ndarray:
  """Reads a (sliced) array.

  Raises:
    ValueError: a file of the store at `store` is missing or damaged.
  """
  try:
    return array.read().result()
  except (ValueError, NotImplementedError) as error:
    raise ValueError(f'{store}: damaged store: {one_line(error)}') from error


class Appender:
  """Writes rows at the end of an array, a shard at a time."""

  def __init__(self, path: str, name: str, layout: Layout, length: int):
    """Rows from `length` on are written anew, whatever stands there."""
    self._array = _open(path, name, {'open': True})
    self._layout = layout
    self._name = name
    self._written = length
    self._buffer: list[np.ndarray] = []
    self._buffered = 0
    self._pending: Any = None
    self.length = length

  def append(self, rows: np.ndarray) -> None:
    """Takes rows; holds at most those of a shard and of this call.

    Raises:
      OSError: an earlier write failed.
    """
    self._buffer.append(rows)
    self._buffered += len(rows)
    self.length += len(rows)
    shard = self._layout.shard
    while self._buffered >= shard - self._written % shard:
      self._write(shard - self._written % shard)

  def finish(self) -> None:
    """Returns when all rows are on disk.

    Raises:
      OSError: a write failed.
    """
    if self._buffered:
      self._write(self._buffered)
    self._wait()

  def _write(self, count: int) -> None:
    rows = np.concatenate(self._buffer)
    rows, rest = rows[:count], rows[count:]
    self._buffer, self._buffered = [rest], len(rest)
    self._wait()
    start, stop = self._written, self._written + count
    row = [self._layout.columns] if self._layout.columns else []
    if stop > self._array.shape[0]:  # a killed writer may have left it longer
      try:
        self._array = self._array.resize(exclusive_max=[stop, *row]).result()
      except ValueError as error:
        raise self._failure(error) from error
    self._pending = self._array[start:stop].write(rows)
    self._written = stop

  def _wait(self) -> None:
    if self._pending is not None:
      try:
        self._pending.result()
      except ValueError as error:
        raise self._failure(error) from error
      self._pending = None

  def _failure(self, error: Exception) -> OSError:
    # TensorStore has ValueErrors for everything, a full disk too.
    return OSError(f'{self._name}: cannot be written: {one_line(error)}')


def one_line(error: Exception) -> str:
  """TensorStore's message without its source locations."""
  return ' '.join(str(error).split(' [')[0].split())


def _open(path: str, name: str, spec: dict, **options: Any) -> ts.TensorStore:
  if '://' in path:
    kvstore: Any = f'{path.rstrip("/")}/arrays/{name}/'
  else:
    directory = epath.Path(os.path.abspath(path)) / 'arrays' / name
    kvstore = {'driver': 'file', 'path': f'{directory}/'}
  spec = {
    'driver': 'zarr3',
    'kvstore': kvstore,
    # A missing file must not read as zeros.
    'fill_missing_data_reads': False,
    'store_data_equal_to_fill_value': True,
    **spec,
  }
  try:
    return ts.open(spec, **options).result()
  except ValueError as error:
    if spec.get('create'):
      raise OSError(f'{name}: cannot be made: {one_line(error)}') from error
    raise ValueError(
      f'{path}: damaged store: array {name!r}: {one_line(error)}'
    ) from error
