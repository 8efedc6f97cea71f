"""Documents in and out of a store: each change is a new generation.

Rows keep their numbers. Readers of an earlier generation, also while a change
is under way, see what they saw before.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from realm_jax.corpus import prepare, store, writer
from realm_jax.corpus.ids import SeenIds
from realm_jax.corpus.sources import Format, read_documents
from realm_jax.workdir import files

_ROWS = 1 << 16  # read at a time


def add(
  path: str, inputs: Sequence[str], format: Format = 'jsonl'
) -> dict[str, Any]:
  """Appends documents to a store.

  Args:
    path: of the store.
    inputs: see `sources.read_documents`; a document without id gets the number
      it has in the store.
    format: of the inputs.

  Returns:
    The manifest.

  Raises:
    ValueError: an input is wrong, a document has the id of one that is in the
      corpus already, or there is no store; the store is as before.
    OSError: the disk is full, say; readers see the store as before.
  """
  path = os.fspath(path)
  store.read_manifest(path)  # before a lock is made in some other directory
  with files.lock(path, 'writer'), contextlib.closing(SeenIds()) as seen:
    corpus = store.Corpus.open(path)
    into = writer.StoreWriter(path, store.read_manifest(path))
    for _, ids in _alive_documents(corpus):
      seen.add(ids, f'a document in {path}')
    number = corpus.num_documents + corpus.manifest['num_empty_documents']
    documents = seen.check(
      read_documents([os.fspath(name) for name in inputs], format, number)
    )
    prepare.append_documents(
      into, documents, corpus.tokenizer, corpus.block_length
    )
    return into.commit()


def remove(path: str, document_ids: Sequence[str]) -> dict[str, Any]:
  """Removes documents from a store: their rows stay and are not alive.

  Args:
    path: of the store.
    document_ids: at least one.

  Returns:
    The manifest.

  Raises:
    ValueError: an id is not in the corpus, or there is no store; the store is
      as before.
    OSError: the disk is full, say; readers see the store as before.
  """
  path = os.fspath(path)
  wanted = set(document_ids)
  if not wanted:
    raise ValueError('document_ids: none, at least one is needed')
  store.read_manifest(path)  # before a lock is made in some other directory
  with files.lock(path, 'writer'):
    corpus = store.Corpus.open(path)
    number_of = {
      identifier: number
      for numbers, ids in _alive_documents(corpus)
      for number, identifier in zip(numbers.tolist(), ids, strict=True)
      if identifier in wanted
    }
    missing = sorted(wanted.difference(number_of))
    if missing:
      raise ValueError(
        f'{path}: has no document {missing[0]!r}'
        + (f' (nor {len(missing) - 1} others)' if missing[1:] else '')
      )
    numbers = np.array(sorted(number_of.values()))
    rows = [
      start + np.flatnonzero(np.isin(documents, numbers))
      for start, documents in _document_numbers(corpus)
    ]
    into = writer.StoreWriter(path, store.read_manifest(path))
    into.remove(np.concatenate(rows), len(numbers))
    return into.commit()


def _document_numbers(corpus: store.Corpus) -> Iterator[tuple[int, np.ndarray]]:
  """First row and the documents of its rows, a stretch of rows at a time."""
  for start in range(0, corpus.num_blocks, _ROWS):
    stop = min(start + _ROWS, corpus.num_blocks)
    yield start, corpus.document_numbers(start, stop)


def _alive_documents(
  corpus: store.Corpus,
) -> Iterator[tuple[np.ndarray, list[str]]]:
  """Numbers and ids of the documents that were not removed."""
  last = -1
  for start, numbers in _document_numbers(corpus):
    alive = corpus.alive(start, start + len(numbers))
    numbers = np.unique(numbers[alive & (numbers > last)])
    if len(numbers):
      first, last = int(numbers[0]), int(numbers[-1])
      documents = corpus.documents(first, last + 1)
      yield numbers, [documents[number - first][0] for number in numbers]
