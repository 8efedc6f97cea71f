"""BERT's uncased wordpieces, with the character offsets of every piece."""

import collections
import hashlib
import heapq
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import numpy as np
import tokenizers
from etils import epath

from realm_jax.text.units import Pieces, UnitTable, split_units

NORMALIZATION = 'bert-uncased'
SPECIAL_TOKENS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')

Encoding = tuple[list[int], list[tuple[int, int]]]

# Units remembered before starting again: some 60 MB.
_CACHE_LIMIT = 300_000


class WordPiece:
  """Text to wordpiece ids and back, as bert-base-uncased does it.

  Raw text never gives [PAD], [CLS], [SEP] or [MASK]: `[MASK]` in a text is
  three pieces like any other word in brackets.

  Attributes:
    path: the vocabulary file.
    digest: sha256 (hex) of the vocabulary's bytes and the name of the
      normalisation: two tokenizers are the same when their digests are.
    vocab: the pieces, by id.
    vocab_size: number of ids.
    pad_id: always 0.
    unk_id: id of [UNK].
    cls_id: id of [CLS].
    sep_id: id of [SEP].
    mask_id: id of [MASK].
    continues: bool [V], whether a piece continues a word (`##...`).
  """

  def __init__(self, content: bytes, path: str) -> None:
    """See `from_file`."""
    self._content = content
    self.path = path
    self.digest = hashlib.sha256(
      content + b'\0' + NORMALIZATION.encode()
    ).hexdigest()
    self.vocab = _read_vocab(content, path)
    ids = {piece: number for number, piece in enumerate(self.vocab)}
    self.vocab_size = len(ids)
    self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
      ids[token] for token in SPECIAL_TOKENS
    )
    self.continues = np.array(
      [piece.startswith('##') and len(piece) > 2 for piece in self.vocab]
    )
    self._tokenizer = tokenizers.Tokenizer(
      tokenizers.models.WordPiece(ids, unk_token='[UNK]')
    )
    self._tokenizer.normalizer = _normalizer()
    self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    self._cache = UnitTable(self._tokenizer)

  @classmethod
  def from_file(cls, vocab_path: str | os.PathLike) -> Self:
    """Reads a vocabulary: UTF-8, one piece a line, line number = id.

    Args:
      vocab_path: a local path or `gs://...`.

    Returns:
      The tokenizer.

    Raises:
      ValueError: the file is no vocabulary (not UTF-8, an empty or repeated
        line, a special token absent, [PAD] not first).
      OSError: the file cannot be read.
    """
    path = os.fspath(vocab_path)
    return cls(epath.Path(path).read_bytes(), path)

  def __reduce__(self) -> tuple:
    # Worker processes get the vocabulary, not the cache.
    return WordPiece, (self._content, self.path)

  def encode(self, text: str) -> Encoding:
    """The pieces of a text, without special tokens.

    Args:
      text: any text.

    Returns:
      ids, and for each the characters [start, end) of `text` it stands for.
    """
    return _as_lists(self.encode_arrays(text))

  def encode_arrays(self, text: str) -> Pieces:
    """`encode`, as arrays."""
    return self._cache.encode(text, _CACHE_LIMIT)

  def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
    """`encode` of each text."""
    return [_as_lists(pieces) for pieces in self.encode_each(texts)]

  def encode_each(self, texts: Sequence[str]) -> Iterator[Pieces]:
    """`encode_arrays` of each text; those of many cost less together."""
    ids, starts, ends = self.encode_arrays('\n'.join(texts))
    begin = 0
    for text in texts:
      first, last = starts.searchsorted((begin, begin + len(text)))
      own = slice(first, last)
      yield Pieces(ids[own], starts[own] - begin, ends[own] - begin)
      begin += len(text) + 1

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids: words joined, [PAD], [CLS], [SEP] and [MASK] left out.

    The case is lost, and where the space was is a guess: none before closing
    punctuation, none inside numbers and hyphenated words.
    """
    silent = {self.pad_id, self.cls_id, self.sep_id, self.mask_id}
    words: list[str] = []
    for number in ids:
      if number in silent:
        continue
      piece = self.vocab[number]
      if self.continues[number] and words:
        words[-1] += piece[2:]
      else:
        words.append(piece)
    return _join_words(words)


def train_vocab(texts: Iterable[str], size: int) -> list[str]:
  """Learns a wordpiece vocabulary: the most frequent neighbours are joined.

  The same texts give the same pieces in the same order, on any machine (the
  trainer in `tokenizers` numbers characters by hash order and breaks ties by
  those numbers, so that two runs of it differ).

  Args:
    texts: texts to learn from, read once.
    size: how many pieces, special tokens included; the result is smaller only
      when every word has become one piece.

  Returns:
    The pieces, by id: the special tokens, the characters, the joined pieces.

  Raises:
    ValueError: `size` leaves no room for characters, or there is no text.
  """
  least = 2 * len(SPECIAL_TOKENS)
  if size < least:
    raise ValueError(f'vocabulary size {size}: must be at least {least}')
  counts = _count_words(texts)
  if not counts:
    raise ValueError('vocabulary: the texts hold no words to learn from')
  words = [[word[0], *('##' + c for c in word[1:])] for word in counts]
  weights = list(counts.values())
  frequency: collections.Counter[str] = collections.Counter()
  for symbols, weight in zip(words, weights, strict=True):
    for symbol in symbols:
      frequency[symbol] += weight
  # Rare characters must not crowd out the joined pieces.
  common = sorted(frequency, key=lambda s: (-frequency[s], s))[: size // 2]
  alphabet = set(common)
  kept = [i for i, symbols in enumerate(words) if alphabet.issuperset(symbols)]
  vocab = dict.fromkeys([*SPECIAL_TOKENS, *sorted(alphabet)])
  for piece in _join_pairs(
    [words[i] for i in kept], [weights[i] for i in kept]
  ):
    if len(vocab) >= size:
      break
    vocab.setdefault(piece)
  return list(vocab)


def _normalizer() -> tokenizers.normalizers.Normalizer:
  return tokenizers.normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=True,
    strip_accents=True,
    lowercase=True,
  )


def _read_vocab(content: bytes, path: str) -> list[str]:
  try:
    text = content.decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: not UTF-8 at byte {error.start}') from error
  # Not splitlines(): pieces such as U+2028 are line breaks to it.
  lines = text.removesuffix('\n').split('\n')
  vocab = [line.removesuffix('\r') for line in lines]
  seen: dict[str, int] = {}
  for number, piece in enumerate(vocab, start=1):
    if not piece:
      raise ValueError(f'{path}:{number}: empty line, expected a wordpiece')
    if piece in seen:
      raise ValueError(
        f'{path}:{number}: {piece!r} stands already in line {seen[piece]}, '
        'each wordpiece must stand once'
      )
    seen[piece] = number
  for token in SPECIAL_TOKENS:
    if token not in seen:
      raise ValueError(
        f'{path}: has no {token}; a BERT vocabulary has '
        f'{", ".join(SPECIAL_TOKENS)}, one piece a line'
      )
  if vocab[0] != '[PAD]':
    raise ValueError(f'{path}:1: {vocab[0]!r}, the first line must be [PAD]')
  return vocab


_CLOSE_UP = [
  (re.compile(r' ([.,!?;:%)\]}])'), r'\1'),
  (re.compile(r'([(\[{$£€#]) '), r'\1'),
  (re.compile(r"(?<=\w) ?([-\u2013/'\u2019]) ?(?=\w)"), r'\1'),
  (re.compile(r'(?<=\d)([.,:]) (?=\d)'), r'\1'),
  (re.compile(r'(?<=\b\w\.) (?=\w\.)'), ''),
]


def _join_words(words: list[str]) -> str:
  text = ' '.join(words)
  for pattern, replacement in _CLOSE_UP:
    text = pattern.sub(replacement, text)
  return text


def _as_lists(pieces: Pieces) -> Encoding:
  offsets = zip(pieces.starts.tolist(), pieces.ends.tolist(), strict=True)
  return pieces.ids.tolist(), list(offsets)


def _count_words(texts: Iterable[str]) -> dict[str, int]:
  """Normalised words and how often they occur, in alphabetical order."""
  units: collections.Counter[str] = collections.Counter()
  for text in texts:
    units.update(split_units(text))
  normalizer = _normalizer()
  splitter = tokenizers.pre_tokenizers.BertPreTokenizer()
  words: collections.Counter[str] = collections.Counter()
  for unit, count in units.items():
    normal = normalizer.normalize_str(unit)
    for word, _ in splitter.pre_tokenize_str(normal):
      words[word] += count
  return dict(sorted(words.items()))


def _join_pairs(words: list[list[str]], weights: list[int]) -> Iterable[str]:
  """Joins the most frequent pair again and again; yields each new piece."""
  counts: collections.Counter[tuple[str, str]] = collections.Counter()
  places: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
  for i, (symbols, weight) in enumerate(zip(words, weights, strict=True)):
    for pair in itertools.pairwise(symbols):
      counts[pair] += weight
      places[pair].add(i)
  heap = [(-count, pair) for pair, count in counts.items()]
  heapq.heapify(heap)
  while heap:
    negative, pair = heapq.heappop(heap)
    if counts[pair] != -negative:
      # An old count: the new one is in the heap too, unless the pair is gone.
      continue
    joined = pair[0] + pair[1].removeprefix('##')
    changed = set()
    for i in places.pop(pair):
      before, weight = words[i], weights[i]
      words[i] = after = _join(before, pair, joined)
      for old in itertools.pairwise(before):
        counts[old] -= weight
        changed.add(old)
      for new in itertools.pairwise(after):
        counts[new] += weight
        places[new].add(i)
        changed.add(new)
    for other in changed:
      if counts[other] > 0:
        heapq.heappush(heap, (-counts[other], other))
      else:
        del counts[other]
        places.pop(other, None)
    yield joined


def _join(symbols: list[str], pair: tuple[str, str], joined: str) -> list[str]:
  after, i = [], 0
  while i < len(symbols):
    if tuple(symbols[i : i + 2]) == pair:
      after.append(joined)
      i += 2
    else:
      after.append(symbols[i])
      i += 1
  return after
