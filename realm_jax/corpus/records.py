"""The release's block records: a text for each row of an index."""

import collections
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from realm_jax.corpus import blocks, writer
from realm_jax.corpus.sources import Document
from realm_jax.text.tagger import RuleTagger
from realm_jax.text.wordpiece import WordPiece
from realm_jax.workdir import files

_BATCH = 1024
# All that an array of bytes is pickled with.
_HARMLESS = {
  ('numpy', 'ndarray'),
  ('numpy', 'dtype'),
  ('numpy.core.multiarray', '_reconstruct'),
  ('numpy._core.multiarray', '_reconstruct'),
  ('_codecs', 'encode'),
}


def read_records(path: str) -> np.ndarray:
  """Reads `block_records.npy`: an array of bytes, pickled as the release did.

  Nothing but bytes is unpickled, whatever the file asks for.

  Raises:
    ValueError: the file is no such array.
  """
  try:
    with open(path, 'rb') as file:
      version = np.lib.format.read_magic(file)
      read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
      }[version]
      shape, _, dtype = read_header(file)
      if dtype.hasobject:
        records = _Unpickler(file).load()
      else:
        records = np.load(path, allow_pickle=False)
  except (ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
    raise ValueError(f'{path}: not an array of texts: {error}') from error
  if not isinstance(records, np.ndarray) or len(shape) != 1:
    raise ValueError(f'{path}: expected an array [N] of texts')
  return records


def store_records(
  records: np.ndarray, path: str, output: str, vocab: bytes, block_length: int
) -> dict[str, Any]:
  """Makes a corpus store with a row for every record, in their order.

  Records have no title. Text that a row has no room for is left out, and such
  records are counted on standard error.

  Args:
    records: of `read_records`.
    path: where they came from, for messages.
    output: a directory that is there; files are written into it.
    vocab: content of the vocab.txt that they are encoded with.
    block_length: wordpieces of a row at most.

  Returns:
    The manifest.

  Raises:
    ValueError: a record is no UTF-8 text or has no wordpiece.
  """
  tokenizer = WordPiece(vocab, f'{output}/vocab.txt')
  into = writer.StoreWriter.new(output, tokenizer, block_length)
  files.write_bytes(f'{output}/vocab.txt', vocab)
  cut = 0
  tagger = RuleTagger()
  for documents in _documents(records, path):
    counts: collections.Counter[str] = collections.Counter()
    split = blocks.split_documents(
      documents, tokenizer, tagger, block_length, counts
    )
    for document, own in zip(documents, split, strict=True):
      if not own:
        raise ValueError(f'{document.place}: has no wordpiece')
      cut += len(own) > 1
    rows = [own[:1] for own in split]
    into.append(writer.pack(documents, rows, tokenizer, block_length, counts))
  if cut:
    print(
      f'{path}: {cut} of {len(records)} records are longer than a block of '
      f'{block_length} wordpieces; their ends are left out',
      file=sys.stderr,
    )
  return into.commit()


def _documents(records: np.ndarray, path: str) -> Iterator[list[Document]]:
  for first in range(0, len(records), _BATCH):
    group = []
    for number, record in enumerate(records[first : first + _BATCH], first):
      try:
        text = record if isinstance(record, str) else bytes(record).decode()
      except (TypeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path}: record {number}: not UTF-8') from error
      group.append(Document(str(number), '', text, f'{path}: record {number}'))
    yield group


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _HARMLESS:
      raise pickle.UnpicklingError(f'asks for {module}.{name}')
    return super().find_class(module, name)
