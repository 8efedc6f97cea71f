"""Documents to a corpus store, in a stream and by several processes."""

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from realm_jax.corpus import blocks, store, writer
from realm_jax.corpus.ids import SeenIds
from realm_jax.corpus.sources import Document, Format, read_documents
from realm_jax.text.tagger import RuleTagger
from realm_jax.text.wordpiece import WordPiece, train_vocab
from realm_jax.workdir import files

# What a process is handed at a time. Rows do not depend on it.
_BATCH_CHARACTERS = 1 << 18
_BATCH_DOCUMENTS = 1024


def prepare(
  inputs: Sequence[str],
  output: str,
  format: Format = 'jsonl',
  vocab: str | None = None,
  train_vocab: int | None = None,
  block_length: int = 288,
  workers: int = 1,
) -> dict[str, Any]:
  """Makes a corpus store.

  The same input gives the same store, whatever the number of workers; memory
  does not depend on the number of documents, but with `train_vocab`, where all
  distinct words are held.

  Args:
    inputs: see `sources.read_documents`.
    output: directory to make, local or `gs://`. When it is already the store
      of this input, nothing is done.
    format: of the inputs.
    vocab: a `vocab.txt`, copied into the store.
    train_vocab: or how many wordpieces to learn from the inputs.
    block_length: wordpieces of a block at most, title and three special
      tokens included.
    workers: processes that split and encode; 1: this one.

  Returns:
    The manifest.

  Raises:
    ValueError: an input or the vocabulary is wrong (file and line are named),
      or `output` holds something else, which is left as it is.
    OSError: the disk is full, say; nothing is left in `output`.
  """
  if (vocab is None) == (train_vocab is None):
    raise ValueError('--vocab or --train-vocab: exactly one of them is needed')
  if block_length < blocks.MIN_BLOCK_LENGTH:
    raise ValueError(
      f'--block-length {block_length}: must be at least '
      f'{blocks.MIN_BLOCK_LENGTH}'
    )
  if workers < 1:
    raise ValueError(f'--workers {workers}: must be at least 1')
  inputs = [os.fspath(name) for name in inputs]
  output = os.fspath(output)
  source = _SourceDigest(
    {
      'block_length': block_length,
      'tagger': RuleTagger().name,
      'vocab': _tokenizer(vocab).digest if vocab else train_vocab,
    }
  )
  directory = epath.Path(output)
  if (directory / 'manifest.json').exists():
    return _same_content(output, source, read_documents(inputs, format))
  with files.new_directory(output, '--output', 'manifest.json'):
    if train_vocab is not None:
      _write_vocab(directory, read_documents(inputs, format), train_vocab)
    else:
      content = epath.Path(vocab).read_bytes()
      files.write_bytes(directory / 'vocab.txt', content)
    tokenizer = WordPiece.from_file(directory / 'vocab.txt')
    into = writer.StoreWriter.new(output, tokenizer, block_length)
    with contextlib.closing(SeenIds()) as seen:
      documents = seen.check(source.watch(read_documents(inputs, format)))
      append_documents(into, documents, tokenizer, block_length, workers)
    if not into.num_blocks:
      raise ValueError(f'{inputs[0]}: no document has a wordpiece in its text')
    into.manifest['source_digest'] = source.hexdigest()
    return into.commit()


def append_documents(
  into: writer.StoreWriter,
  documents: Iterable[Document],
  tokenizer: WordPiece,
  block_length: int,
  workers: int = 1,
) -> None:
  """Splits documents into blocks and appends them in their order.

  Args:
    into: the store.
    documents: read as they are needed.
    tokenizer: the store's.
    block_length: the store's.
    workers: processes; 1: this one.

  Raises:
    ValueError: a document is wrong.
    OSError: the store cannot be written, or a worker died.
  """
  groups = _groups(documents)
  encode = _Encoder(tokenizer, block_length)
  if workers == 1:
    for group in groups:
      into.append(encode(group))
    return
  # Not forked: the libraries have threads. A worker that dies is an error
  # here, where multiprocessing.Pool would wait for it for ever.
  with concurrent.futures.ProcessPoolExecutor(
    workers,
    multiprocessing.get_context('spawn'),
    initializer=_start_worker,
    initargs=(encode,),
  ) as pool:
    pending: collections.deque[concurrent.futures.Future[writer.Batch]]
    pending = collections.deque()
    try:
      for group in groups:
        pending.append(pool.submit(_work, group))
        if len(pending) > 2 * workers:
          into.append(pending.popleft().result())
      while pending:
        into.append(pending.popleft().result())
    except concurrent.futures.BrokenExecutor as error:
      raise ChildProcessError(
        'a worker process died (out of memory?); use fewer --workers'
      ) from error
    except BaseException:
      pool.shutdown(wait=True, cancel_futures=True)
      raise


class _Encoder:
  """Documents to rows; what a worker process is given at its start."""

  def __init__(self, tokenizer: WordPiece, block_length: int):
    self._tokenizer = tokenizer
    self._block_length = block_length
    self._tagger = RuleTagger()

  def __call__(self, documents: Sequence[Document]) -> writer.Batch:
    counts: collections.Counter[str] = collections.Counter()
    split = blocks.split_documents(
      documents, self._tokenizer, self._tagger, self._block_length, counts
    )
    return writer.pack(
      documents, split, self._tokenizer, self._block_length, counts
    )


_encoder: _Encoder | None = None  # of a worker process


def _start_worker(encoder: _Encoder) -> None:
  global _encoder
  _encoder = encoder


def _work(documents: Sequence[Document]) -> writer.Batch:
  assert _encoder is not None
  return _encoder(documents)


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
  group: list[Document] = []
  characters = 0
  for document in documents:
    group.append(document)
    characters += len(document.text)
    if characters >= _BATCH_CHARACTERS or len(group) == _BATCH_DOCUMENTS:
      yield group
      group, characters = [], 0
  if group:
    yield group


class _SourceDigest:
  """Tells inputs apart without splitting them: a hash of what is read."""

  def __init__(self, settings: dict[str, Any]):
    self._hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())

  def watch(self, documents: Iterable[Document]) -> Iterator[Document]:
    for document in documents:
      for part in (document.id, document.title, document.text):
        content = part.encode()
        self._hash.update(len(content).to_bytes(8, 'little'))
        self._hash.update(content)
      yield document

  def hexdigest(self) -> str:
    return self._hash.hexdigest()


def _same_content(
  output: str, source: _SourceDigest, documents: Iterable[Document]
) -> dict[str, Any]:
  """The manifest of a store that is there; ValueError if of other content."""
  manifest = store.read_manifest(output)
  for _ in source.watch(documents):
    pass
  if manifest['source_digest'] != source.hexdigest():
    raise ValueError(
      f'--output {output}: holds another corpus (of source '
      f'{manifest["source_digest"]}, not {source.hexdigest()}); choose another '
      'directory, or delete that one'
    )
  if len(manifest['generations']) > 1:
    print(
      f'prepare: {output}: was made of this input, and changed since by `realm '
      'corpus`; it stays as it is',
      file=sys.stderr,
    )
  return manifest


def _tokenizer(vocab: str) -> WordPiece:
  try:
    return WordPiece.from_file(vocab)
  except FileNotFoundError as error:
    raise ValueError(f'--vocab {vocab}: no such file') from error
  except IsADirectoryError as error:
    raise ValueError(f'--vocab {vocab}: is a directory') from error


def _write_vocab(
  directory: epath.Path, documents: Iterable[Document], size: int
) -> None:
  texts = (f'{document.title}\n{document.text}' for document in documents)
  pieces = train_vocab(texts, size)
  text = ''.join(f'{piece}\n' for piece in pieces)
  files.write_text(directory / 'vocab.txt', text)
