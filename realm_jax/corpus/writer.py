"""Writing a corpus store: rows at the end, the manifest last."""

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence, Sized
from typing import Any, Self

import numpy as np
from etils import epath

from realm_jax.corpus import arrays, store
from realm_jax.corpus.blocks import Block
from realm_jax.corpus.sources import Document
from realm_jax.text.tagger import RuleTagger
from realm_jax.text.wordpiece import WordPiece
from realm_jax.workdir import files

COUNTS = (
  'num_documents',
  'num_blocks',
  'num_sentences',
  'num_salient_spans',
  'num_empty_documents',
  'num_cut_titles',
  'num_cut_sentences',
  'num_sentences_without_span',
  'num_removed_documents',
  'num_removed_blocks',
)


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
  """Blocks of some documents, as the arrays of a store that holds only them.

  Attributes:
    rows: by array, see `arrays.layouts`.
    counts: by name in the manifest.
  """

  rows: dict[str, np.ndarray]
  counts: collections.Counter[str]


def pack(
  documents: Sequence[Document],
  blocks: Sequence[Sequence[Block]],
  tokenizer: WordPiece,
  block_length: int,
  counts: collections.Counter[str],
) -> Batch:
  """Turns blocks into rows. A document without blocks gets none.

  Args:
    documents: what was split.
    blocks: of each document.
    tokenizer: that of the blocks.
    block_length: columns of the tokens.
    counts: what splitting counted.

  Returns:
    The rows, with what they add to the counts.
  """
  layouts = arrays.layouts(block_length, tokenizer.vocab_size)
  flat = list(itertools.chain.from_iterable(blocks))
  own_D = np.array([len(own) for own in blocks if own], np.int64)
  names = [
    name.encode()
    for document, own in zip(documents, blocks, strict=True)
    if own
    for name in (document.id, document.title)
  ]
  texts = [block.text.encode() for block in flat]
  spans = _ends([block.span for block in flat])
  sentence = _join([block.sentence for block in flat], layouts['sentence'])
  # Ends of spans count from the block's first one.
  sizes = [len(block.sentence) for block in flat]
  sentence[:, 2] += np.repeat(spans - np.diff(spans, prepend=0), sizes)
  columns = {
    'block': np.stack(
      [
        _ends(texts),
        _ends([block.sentence for block in flat]),
        np.repeat(np.arange(len(own_D)), own_D),
      ],
      axis=1,
    ),
    'document': _ends(names).reshape(-1, 2),
    'sentence': sentence,
    'sentence_hash': _join(
      [block.hash for block in flat], layouts['sentence_hash']
    ),
    'span': _join([block.span for block in flat], layouts['span']),
  }
  rows = {
    name: column.astype(layouts[name].dtype) for name, column in columns.items()
  }
  rows['text'] = np.frombuffer(b''.join(texts), np.uint8)
  rows['document_text'] = np.frombuffer(b''.join(names), np.uint8)
  tokens = np.zeros((len(flat), block_length), layouts['tokens'].dtype)
  for row, block in zip(tokens, flat, strict=True):
    body = len(block.title) + 2
    row[0] = tokenizer.cls_id
    row[1 : body - 1] = block.title
    row[body - 1] = tokenizer.sep_id
    row[body : body + len(block.body)] = block.body
    row[body + len(block.body)] = tokenizer.sep_id
  rows['tokens'] = tokens
  counts.update(
    num_documents=len(own_D),
    num_blocks=len(tokens),
    num_sentences=len(rows['sentence']),
    num_salient_spans=len(rows['span']),
  )
  return Batch(rows, counts)


def _ends(parts: Sequence[Sized]) -> np.ndarray:
  """Where each part ends when they are laid one after another."""
  return np.fromiter(map(len, parts), np.int64, len(parts)).cumsum()


def _join(parts: Sequence[np.ndarray], layout: arrays.Layout) -> np.ndarray:
  """Concatenates rows of a layout."""
  row = [layout.columns] if layout.columns else []
  none = np.zeros((0, *row), layout.dtype)
  return np.concatenate([none, *parts], dtype=layout.dtype)


class StoreWriter:
  """Appends to the arrays of a store, and makes the next generation.

  Attributes:
    manifest: what the store's manifest is to be, or is.
  """

  def __init__(self, path: str, manifest: dict[str, Any]):
    """Opens the arrays of a store, after the newest generation if any.

    Args:
      path: of the store; without generations its arrays are made.
      manifest: with `block_length`, `vocab_size` and `generations`.
    """
    self.path = path
    self.manifest = manifest
    layouts = arrays.layouts(manifest['block_length'], manifest['vocab_size'])
    self._newest: dict[str, Any] = {'fingerprint': None, 'lengths': {}}
    if manifest['generations']:
      self._newest = manifest['generations'][-1]
    else:
      for name, layout in layouts.items():
        arrays.create(path, name, layout)
    self._appenders = {
      name: arrays.Appender(
        path, name, layout, self._newest['lengths'].get(name, 0)
      )
      for name, layout in layouts.items()
    }
    self._digests = {name: hashlib.sha256() for name in layouts}
    self._counts = collections.Counter(
      {name: self._newest.get(name, 0) for name in COUNTS}
    )

  @classmethod
  def new(cls, path: str, tokenizer: WordPiece, block_length: int) -> Self:
    """Begins a store in a directory that has none."""
    return cls(
      path,
      {
        'format_version': store.FORMAT_VERSION,
        'block_length': block_length,
        'vocab_size': tokenizer.vocab_size,
        'tokenizer_digest': tokenizer.digest,
        'tagger': RuleTagger().name,
        'source_digest': '',
        'generations': [],
      },
    )

  @property
  def num_blocks(self) -> int:
    """Rows of the store, uncommitted ones included."""
    return self._appenders['tokens'].length

  def append(self, batch: Batch) -> None:
    """Appends documents.

    Raises:
      OSError: the disk is full, say.
    """
    length = {name: one.length for name, one in self._appenders.items()}
    shifts = {
      'block': (length['text'], length['sentence'], length['document']),
      'document': (length['document_text'],) * 2,
      'sentence': (0, 0, length['span']),
    }
    for name, rows in batch.rows.items():
      self._append(name, rows + np.array(shifts.get(name, 0), rows.dtype))
    self._counts.update(batch.counts)

  def remove(self, blocks: np.ndarray, num_documents: int) -> None:
    """Marks blocks as removed, those of so many whole documents.

    Raises:
      OSError: the disk is full, say.
    """
    self._append('removed', blocks.astype(np.int64))
    self._counts.update(
      num_removed_documents=num_documents, num_removed_blocks=len(blocks)
    )

  def commit(self) -> dict[str, Any]:
    """Makes what was appended a generation: readers see all of it or nothing.

    Returns:
      The manifest.

    Raises:
      OSError: the disk is full, say.
    """
    for appender in self._appenders.values():
      appender.finish()
    parent = self._newest['fingerprint']
    content = {
      'parent': parent,
      'block_length': self.manifest['block_length'],
      'tokenizer_digest': self.manifest['tokenizer_digest'],
      'rows': {name: one.hexdigest() for name, one in self._digests.items()},
    }
    generation = {
      'fingerprint': hashlib.sha256(
        json.dumps(content, sort_keys=True).encode()
      ).hexdigest(),
      'parent': parent,
      **{name: self._counts[name] for name in COUNTS},
    }
    lengths = {name: one.length for name, one in self._appenders.items()}
    self.manifest = {
      **self.manifest,
      **generation,
      'generations': [
        *self.manifest['generations'],
        {**generation, 'lengths': lengths},
      ],
    }
    files.write_json(epath.Path(self.path) / 'manifest.json', self.manifest)
    return self.manifest

  def _append(self, name: str, rows: np.ndarray) -> None:
    rows = np.ascontiguousarray(rows)
    self._digests[name].update(rows)
    self._appenders[name].append(rows)
