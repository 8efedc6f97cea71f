"""Reading a corpus store: one generation of it, whose rows never change."""

import dataclasses
import functools
import itertools
import os
from typing import Any, Self

import numpy as np
import tensorstore as ts
from etils import epath

from realm_jax.corpus import arrays
from realm_jax.text.wordpiece import WordPiece
from realm_jax.workdir import files

FORMAT_VERSION = 1

_CACHE_BYTES = 64 << 20  # what is decompressed, for all arrays of a store


@dataclasses.dataclass(frozen=True)
class Sentences:
  """Where the sentences and their salient spans are. Ends are exclusive.

  Attributes:
    block_offsets: int64 [N + 1]; sentences of block n are
      range(block_offsets[n], block_offsets[n + 1]).
    start: int32 [S], in wordpieces of the block's body (0 is its first).
    end: int32 [S].
    hash: uint64 [S], of the token ids: equal for equal sentences.
    span_offsets: int64 [S + 1]; spans of sentence s are
      range(span_offsets[s], span_offsets[s + 1]).
    span_start: int32 [P], in wordpieces of the block's body.
    span_end: int32 [P].
  """

  block_offsets: np.ndarray
  start: np.ndarray
  end: np.ndarray
  hash: np.ndarray
  span_offsets: np.ndarray
  span_start: np.ndarray
  span_end: np.ndarray


def read_manifest(path: str) -> dict[str, Any]:
  """Reads the manifest of a store.

  Raises:
    ValueError: there is no complete store, or it is of another format.
  """
  file = epath.Path(path) / 'manifest.json'
  if not file.exists():
    raise ValueError(
      f'{path}: not a corpus store (no manifest.json), make one with '
      '`realm prepare`'
    )
  manifest = files.read_json(file)
  if not isinstance(manifest, dict):
    raise ValueError(f'{file}: damaged, expected a JSON object')
  version = manifest.get('format_version')
  if version != FORMAT_VERSION:
    raise ValueError(
      f'{file}: format_version {version}, this program reads {FORMAT_VERSION}'
    )
  if not manifest.get('generations'):
    raise ValueError(f'{file}: damaged, it has no generations')
  return manifest


def at_generation(manifest: dict[str, Any], number: int) -> dict[str, Any]:
  """The manifest as it was when generation `number` was the newest."""
  generations = manifest['generations'][: number + 1]
  newest = {k: v for k, v in generations[-1].items() if k != 'lengths'}
  return manifest | newest | {'generations': generations}


class Corpus:
  """A corpus, as it was after one of its changes; read only.

  Rows (blocks) are numbered from 0 and keep their numbers; rows that were
  removed can still be read, `alive` says which. Safe for several threads, and
  while another process changes the store.

  Attributes:
    path: of the store.
    manifest: as `manifest.json` was in this generation.
    fingerprint: of the content.
    parent: the fingerprint before the last change, or None.
    block_length: wordpieces of a row.
    num_blocks: rows, removed ones included.
    num_documents: documents, removed ones included.
    num_sentences: sentences, those of removed rows included.
    tokenizer_digest: of the tokenizer that the rows were made with.
  """

  def __init__(self, path: str, manifest: dict[str, Any]):
    """See `open`; `manifest` ends with the generation that is opened."""
    self.path = path
    self.manifest = manifest
    self.fingerprint: str = manifest['fingerprint']
    self.parent: str | None = manifest['parent']
    self.block_length: int = manifest['block_length']
    self.num_blocks: int = manifest['num_blocks']
    self.num_documents: int = manifest['num_documents']
    self.num_sentences: int = manifest['num_sentences']
    self.tokenizer_digest: str = manifest['tokenizer_digest']
    self._lengths: dict[str, int] = manifest['generations'][-1]['lengths']
    context = ts.Context({'cache_pool': {'total_bytes_limit': _CACHE_BYTES}})
    self._arrays = {
      name: arrays.open_to_read(path, name, context) for name in self._lengths
    }

  @classmethod
  def open(
    cls, path: str | os.PathLike, fingerprint: str | None = None
  ) -> Self:
    """Opens a store.

    Args:
      path: local or `gs://`.
      fingerprint: of the generation to read; None: the newest.

    Returns:
      The corpus.

    Raises:
      ValueError: no complete store is there, it is damaged, or it has no such
        generation.
    """
    path = os.fspath(path)
    manifest = read_manifest(path)
    known = [change['fingerprint'] for change in manifest['generations']]
    if fingerprint is None:
      fingerprint = known[-1]
    if fingerprint not in known:
      raise ValueError(
        f'{path}: has fingerprint {known[-1]}, not {fingerprint} (nor had it '
        'before a change)'
      )
    return cls(path, at_generation(manifest, known.index(fingerprint)))

  @functools.cached_property
  def tokenizer(self) -> WordPiece:
    """The tokenizer, from the store's copy of the vocabulary."""
    tokenizer = WordPiece.from_file(epath.Path(self.path) / 'vocab.txt')
    if tokenizer.digest != self.tokenizer_digest:
      raise ValueError(
        f'{tokenizer.path}: tokenizer {tokenizer.digest}, the store was made '
        f'with {self.tokenizer_digest}'
      )
    return tokenizer

  @functools.cached_property
  def sentences(self) -> Sentences:
    """All sentences and salient spans (some 200 bytes a row in memory)."""
    block_N, sentence_S3 = self._read('block')[:, 1], self._read('sentence')
    span_P2 = self._read('span')
    return Sentences(
      block_offsets=np.concatenate([[0], block_N]),
      start=sentence_S3[:, 0].astype(np.int32),
      end=sentence_S3[:, 1].astype(np.int32),
      hash=self._read('sentence_hash'),
      span_offsets=np.concatenate([[0], sentence_S3[:, 2]]),
      span_start=np.ascontiguousarray(span_P2[:, 0]),
      span_end=np.ascontiguousarray(span_P2[:, 1]),
    )

  def sentence_bounds(self, row: int) -> np.ndarray:
    """[S, 2] of a row: first and end (exclusive) of its sentences.

    In wordpieces of its body, as `sentences` has them of all rows.
    """
    first, end = self._ends('block', row, row + 1)[:, 1]
    return self._read('sentence', int(first), int(end))[:, :2]

  def descends_from(self, fingerprint: str) -> bool:
    """Whether this is the corpus `fingerprint`, or that after changes."""
    return any(
      change['fingerprint'] == fingerprint
      for change in self.manifest['generations']
    )

  def tokens(self, rows: np.ndarray | slice) -> np.ndarray:
    """Token ids of rows, in any order.

    Args:
      rows: row numbers [n], or a slice.

    Returns:
      [n, block_length], uint16 (int32 for a vocabulary over 65,536):
      `[CLS] title [SEP] body [SEP]`, padded with 0.

    Raises:
      IndexError: a row is not there.
    """
    if isinstance(rows, slice):
      return self._read('tokens', *rows.indices(self.num_blocks))
    rows = np.asarray(rows)
    if rows.size and (rows.min() < 0 or rows.max() >= self.num_blocks):
      raise IndexError(
        f'{self.path}: rows from {rows.min()} to {rows.max()}, has '
        f'{self.num_blocks}'
      )
    return arrays.read(self._arrays['tokens'][rows], self.path)

  def alive(self, start: int, stop: int) -> np.ndarray:
    """bool [stop - start]: which rows were not removed."""
    alive = np.ones(stop - start, bool)
    removed = self._removed
    alive[removed[(removed >= start) & (removed < stop)] - start] = False
    return alive

  def texts(self, start: int, stop: int) -> list[str]:
    """The texts of rows start to stop: for each, what its body encodes."""
    ends = self._ends('block', start, stop)[:, 0]
    text = self._read('text', int(ends[0]), int(ends[-1])).tobytes()
    bounds = (ends - ends[0]).tolist()
    return [
      text[first:last].decode() for first, last in itertools.pairwise(bounds)
    ]

  def text(self, row: int) -> str:
    """The text of a row."""
    return self.texts(row, row + 1)[0]

  def document(self, row: int) -> tuple[str, str]:
    """The id and the title of a row's document."""
    number = int(self.document_numbers(row, row + 1)[0])
    return self.documents(number, number + 1)[0]

  def title(self, row: int) -> str:
    """The title of a row's document."""
    return self.document(row)[1]

  def document_id(self, row: int) -> str:
    """The id of a row's document."""
    return self.document(row)[0]

  def document_numbers(self, start: int, stop: int) -> np.ndarray:
    """int64 [stop - start]: the documents of rows, ascending."""
    return self._ends('block', start, stop)[1:, 2]

  def documents(self, start: int, stop: int) -> list[tuple[str, str]]:
    """Ids and titles of documents start to stop."""
    ends = self._ends('document', start, stop)
    first = int(ends[0, 1])
    text = self._read('document_text', first, int(ends[-1, 1])).tobytes()
    bounds = (ends - first).tolist()
    return [
      (text[before:middle].decode(), text[middle:end].decode())
      for (_, before), (middle, end) in itertools.pairwise(bounds)
    ]

  @functools.cached_property
  def _removed(self) -> np.ndarray:
    return self._read('removed')

  def _ends(self, name: str, start: int, stop: int) -> np.ndarray:
    """[stop - start + 1, columns]: with the row before, zeros before the first.

    Raises:
      IndexError: a row is not there.
    """
    if not 0 <= start <= stop <= self._lengths[name]:
      raise IndexError(
        f'{self.path}: {name} {start} to {stop}, has {self._lengths[name]}'
      )
    ends = self._read(name, max(start - 1, 0), stop)
    return ends if start else np.pad(ends, ((1, 0), (0, 0)))

  def _read(
    self, name: str, start: int = 0, stop: int | None = None, step: int = 1
  ) -> np.ndarray:
    length = self._lengths[name]
    stop = length if stop is None else stop
    if step != 1 or not 0 <= start <= stop <= length:
      raise IndexError(
        f'{self.path}: {name} {start}:{stop}:{step}, has {length}'
      )
    if start == stop:  # the array may not even be that long
      shape = (0, *self._arrays[name].shape[1:])
      return np.zeros(shape, self._arrays[name].dtype.numpy_dtype)
    return arrays.read(self._arrays[name][start:stop], self.path)
