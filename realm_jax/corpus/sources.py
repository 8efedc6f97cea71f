"""Where documents come from: JSON lines, or a TensorFlow dataset by name."""

import bz2
import dataclasses
import html
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import zstandard
from etils import epath

Format = Literal['jsonl', 'wikiextractor', 'tfds']

_CHUNK_BYTES = 1 << 16
# JSON can spell half of a surrogate pair, which no UTF-8 text holds.
_SURROGATE = re.compile(rb'\\u[dD][89a-fA-F]')


class _Damaged(Exception):
  """What no decompressor takes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
  """A document.

  Attributes:
    id: from the source, else its number in the input as text.
    title: not empty.
    text: not empty.
    place: where it was read, for messages (`FILE:LINE`).
  """

  id: str
  title: str
  text: str
  place: str = ''


def read_documents(
  inputs: Sequence[str], format: Format = 'jsonl', first_number: int = 0
) -> Iterator[Document]:
  """Reads documents one by one, in the order of the inputs.

  Args:
    inputs: files of JSON lines `{"id"?, "title", "text"}` (`.gz`, `.zst` and
      `.bz2` too), or `tfds:NAME[/CONFIG][:SPLIT]` (default split: train).
    format: `jsonl`; with `tfds` every input is such a name, `tfds:` or not;
      with `wikiextractor` it is what that tool wrote with `--json`, a file or
      a directory.
    first_number: the number of the first document; one without an id has its
      number as id.

  Yields:
    The documents. That ids are unique is not checked here.

  Raises:
    ValueError: an input that cannot be read, or a document without title or
      text; the message names file and line.
  """
  if format not in get_args(Format):
    raise ValueError(
      f'--format {format}: choose from {", ".join(get_args(Format))}'
    )
  if not inputs:
    raise ValueError('--input: no input, needs at least one file')
  number = first_number
  for name in inputs:
    if format == 'tfds' or name.startswith('tfds:'):
      name = 'tfds:' + name.removeprefix('tfds:')
      records = (
        (f'{name} example {index}', _with_title(example))
        for index, example in read_tfds(name)
      )
    elif format == 'wikiextractor':
      records = _read_wikiextractor(epath.Path(name))
    else:
      records = (
        (f'{name}:{line}', record) for line, record in read_json_lines(name)
      )
    for place, record in records:
      yield _document(record, number, place)
      number += 1


def read_json_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Reads a file of JSON objects, one a line; empty lines are passed over.

  Args:
    path: local or `gs://`; `.gz`, `.zst` and `.bz2` are decompressed.

  Yields:
    Line number (from 1) and object.

  Raises:
    ValueError: the file is missing, empty, damaged or truncated, or a line is
      not UTF-8 or not a JSON object; the message names file and line.
  """
  empty = True
  for number, line in enumerate(_lines(path), start=1):
    if not line.strip():
      continue
    empty = False
    yield number, _parse(line, f'{path}:{number}')
  if empty:
    raise ValueError(f'{path}: empty file, expected JSON lines')


def read_tfds(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Reads a TensorFlow dataset by random access, without TensorFlow.

  Args:
    name: `tfds:NAME[/CONFIG][:SPLIT]`; the split is `train` by default. Data
      is looked for in `$TFDS_DATA_DIR` (`~/tensorflow_datasets`), in the
      array_record format.

  Yields:
    Number (from 0) and features, with texts as `str`.

  Raises:
    ValueError: there is no such dataset or split, it is empty, or a text is
      not UTF-8; the message names dataset and example.
  """
  import tensorflow_datasets as tfds  # takes a second

  dataset, _, split = name.removeprefix('tfds:').partition(':')
  try:
    source = tfds.data_source(dataset, split=split or 'train', download=False)
  except (
    ValueError,
    KeyError,
    AssertionError,
    tfds.core.DatasetNotFoundError,
    # The data is there in a format without random access.
    AttributeError,
    NotImplementedError,
  ) as error:
    reason = ' '.join(str(error).split())[:120]
    raise ValueError(
      f'{name}: cannot be read as tfds:NAME[/CONFIG][:SPLIT] in the '
      f'array_record format ({reason})'
    ) from error
  if not len(source):
    raise ValueError(f'{name}: empty dataset, expected examples')
  for index in range(len(source)):
    yield index, _as_text(source[index], f'{name} example {index}')


def _read_wikiextractor(
  path: epath.Path,
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Place and record of every article that has text (redirects have none).

  Args:
    path: a file, or a directory of files and directories (`AA/wiki_00`), which
      are read in the order of their names.
  """
  if path.is_dir():
    below = sorted(p for p in path.iterdir() if not p.name.startswith('.'))
    if not below:
      raise ValueError(f'{path}: empty directory, expected files')
    for child in below:
      yield from _read_wikiextractor(child)
    return
  for line, record in read_json_lines(str(path)):
    for field in ('title', 'text'):
      if isinstance(record.get(field), str):
        record[field] = html.unescape(record[field])
    if isinstance(record.get('text'), str):
      # Some versions of the tool begin the text with the title.
      first, _, rest = record['text'].lstrip().partition('\n')
      if first == record.get('title'):
        record['text'] = rest
      if not record['text'].strip():
        continue
    yield f'{path}:{line}', record


def _lines(path: str) -> Iterator[bytes]:
  """Lines of a file; at most a line and a chunk are held."""
  number = 0
  begun: list[bytes] = []  # parts of a line that has not ended
  try:
    with epath.Path(path).open('rb') as file:
      chunks = iter(lambda: file.read(_CHUNK_BYTES), b'')
      for chunk in _decompress(path, chunks):
        *lines, rest = chunk.split(b'\n')
        for line in lines:
          number += 1
          yield b''.join([*begun, line])
          begun = []
        begun.append(rest)
  except FileNotFoundError as error:
    raise ValueError(f'{path}: no such file') from error
  except IsADirectoryError as error:
    raise ValueError(f'{path}: is a directory, expected a file') from error
  except PermissionError as error:
    raise ValueError(f'{path}: may not be read (permissions)') from error
  except EOFError as error:
    raise ValueError(
      f'{path}:{number + 1}: the compressed file is truncated'
    ) from error
  except _Damaged as error:
    raise ValueError(
      f'{path}:{number + 1}: the compressed file is damaged ({error})'
    ) from error
  if rest := b''.join(begun):
    yield rest


def _decompress(path: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
  """Raises EOFError where the file ends within what was compressed."""
  if path.endswith('.gz'):
    start = lambda: zlib.decompressobj(wbits=31)  # noqa: E731
  elif path.endswith('.zst'):
    start = zstandard.ZstdDecompressor().decompressobj
  elif path.endswith('.bz2'):
    start = bz2.BZ2Decompressor
  else:
    yield from chunks
    return
  part = None
  for chunk in chunks:
    while chunk:
      part = part or start()
      try:
        content = part.decompress(chunk)
      except (zlib.error, zstandard.ZstdError, OSError) as error:
        raise _Damaged(str(error)) from error
      yield content
      chunk = part.unused_data
      if part.eof:
        part = None
  if part:
    raise EOFError


def _parse(line: bytes, place: str) -> dict[str, Any]:
  try:
    text = line.decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{place}: not UTF-8 at byte {error.start} of the line'
    ) from error
  try:
    record = json.loads(text)
    if _SURROGATE.search(line):
      json.dumps(record, ensure_ascii=False).encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{place}: holds half of a surrogate pair (\\ud800 to \\udfff), '
      'expected whole characters'
    ) from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{place}: not JSON ({error})') from error
  if not isinstance(record, dict):
    raise ValueError(
      f'{place}: {text[:40]!r} is not a JSON object, expected {{"field": ...}}'
    )
  return record


def _document(record: dict[str, Any], number: int, place: str) -> Document:
  for field in ('title', 'text'):
    if field not in record:
      raise ValueError(
        f'{place}: has no field {field!r}, expected {{"id"?, "title", "text"}}'
      )
    value = record[field]
    if not isinstance(value, str):
      raise ValueError(f'{place}: {field}: {value!r}, must be a text')
    if not value.strip():
      raise ValueError(f'{place}: {field}: empty, must hold text')
  identifier = record.get('id')
  if identifier is None:
    identifier = number
  elif isinstance(identifier, bool) or not isinstance(identifier, str | int):
    raise ValueError(f'{place}: id: {identifier!r}, must be a text')
  elif identifier == '':
    raise ValueError(f'{place}: id: empty, must be a text or absent')
  return Document(str(identifier), record['title'], record['text'], place)


def _as_text(value: Any, place: str) -> Any:
  """Decodes the bytes in (nested) features."""
  if isinstance(value, bytes):
    try:
      return value.decode('utf-8')
    except UnicodeDecodeError as error:
      raise ValueError(f'{place}: not UTF-8 at byte {error.start}') from error
  if isinstance(value, dict):
    return {name: _as_text(item, place) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [_as_text(item, place) for item in value]
  if getattr(getattr(value, 'dtype', None), 'kind', '') == 'O':  # bytes
    return _as_text(value.tolist(), place)
  return value


def _with_title(record: dict[str, Any]) -> dict[str, Any]:
  """Takes the title out of the text of a wiki40b article."""
  if 'title' in record or '_START_ARTICLE_' not in str(record.get('text')):
    return record
  title, paragraphs, kind = '', [], ''
  for line in record['text'].split('\n'):
    if line.startswith('_START_'):
      kind = line.strip('_')
    elif kind == 'START_ARTICLE':
      title = title or line.strip()
    elif kind == 'START_PARAGRAPH':
      paragraphs.append(line.replace('_NEWLINE_', '\n'))
  return record | {'title': title, 'text': '\n'.join(paragraphs)}
