"""Documents to blocks: whole sentences, packed greedily.

Many documents at a time: their texts are one text, with a line break between
two of them, and what is known of its sentences, wordpieces and spans is in
arrays. [D]: by document; [K]: by part (a sentence, or a piece of one that no
block can hold whole); [P]: by wordpiece.
"""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from realm_jax.corpus.parts import Parts, cut_parts, find_sentences
from realm_jax.corpus.sources import Document
from realm_jax.text.tagger import Tagger, tag_all
from realm_jax.text.wordpiece import WordPiece

MIN_BLOCK_LENGTH = 16
NUM_SPECIAL = 3  # [CLS] title [SEP] body [SEP]


@dataclasses.dataclass(frozen=True, slots=True)
class Sentence:
  """A sentence of a block, or a part of one that no block can hold whole.

  Attributes:
    start: in wordpieces of the block's body.
    end: exclusive.
    hash: 64 bits of its token ids.
    spans: starts and ends (exclusive) of its salient spans, in wordpieces of
      the block's body: sorted, whole words, no overlap.
  """

  start: int
  end: int
  hash: int
  spans: list[tuple[int, int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
  """A block: `[CLS] title [SEP] body [SEP]`.

  Attributes:
    title: token ids, int32.
    body: token ids, int32: what the tokenizer gives for `text`.
    text: of the body, a slice of the document's text.
    sentence: [S, 3]: start and end in the body, in wordpieces, and end of its
      spans in `span`; from the body's start to its end.
    hash: uint64 [S], 64 bits of the token ids of each sentence.
    span: [spans, 2]: start and end in the body, in wordpieces.
  """

  title: np.ndarray
  body: np.ndarray
  text: str
  sentence: np.ndarray
  hash: np.ndarray
  span: np.ndarray

  @property
  def sentences(self) -> list[Sentence]:
    """The sentences one by one."""
    spans = [(start, end) for start, end in self.span.tolist()]
    sentences, first = [], 0
    for (start, end, last), number in zip(
      self.sentence.tolist(), self.hash.tolist(), strict=True
    ):
      sentences.append(Sentence(start, end, number, spans[first:last]))
      first = last
    return sentences


def split_document(
  document: Document,
  tokenizer: WordPiece,
  tagger: Tagger,
  block_length: int,
  counts: collections.Counter[str],
) -> list[Block]:
  """`split_documents` of one."""
  return split_documents([document], tokenizer, tagger, block_length, counts)[0]


def split_documents(
  documents: Sequence[Document],
  tokenizer: WordPiece,
  tagger: Tagger,
  block_length: int,
  counts: collections.Counter[str],
) -> list[list[Block]]:
  """Splits documents into blocks of at most block_length wordpieces.

  A block takes sentences for as long as they fit beside the title and three
  special tokens. A sentence is cut only when no block can hold it, between
  words if possible. A title takes at most half of the room.

  Args:
    documents: what to split.
    tokenizer: for title and text.
    tagger: marks the salient spans of a sentence.
    block_length: at least MIN_BLOCK_LENGTH.
    counts: gets what was cut or is empty, under its names in the manifest.

  Returns:
    The blocks of each document in order; none when its text has no wordpiece
    at all.
  """
  most = (block_length - NUM_SPECIAL) // 2
  encoded = tokenizer.encode_each([document.title for document in documents])
  titles = [pieces.ids for pieces in encoded]
  counts['num_cut_titles'] += sum(len(title) > most for title in titles)
  titles = [title[:most] for title in titles]
  room_D = [block_length - NUM_SPECIAL - len(title) for title in titles]
  texts = [document.text for document in documents]
  parts = find_sentences(texts, tokenizer)
  text = '\n'.join(texts)
  size_K = np.diff(parts.bounds)
  long = np.flatnonzero(size_K > np.array(room_D)[parts.document]).tolist()
  counts['num_cut_sentences'] += len(long)
  if long:
    parts = cut_parts(text, parts, long, room_D, tokenizer)
  part_X, span = _spans(text, parts, tokenizer, tagger)
  counts['num_sentences_without_span'] += len(parts.start) - len(
    np.unique(part_X)
  )
  blocks: list[list[Block]] = [[] for _ in documents]
  for number, block in _blocks(text, titles, room_D, parts, part_X, span):
    blocks[number].append(block)
  counts['num_empty_documents'] += sum(not own for own in blocks)
  return blocks


def _blocks(
  text: str,
  titles: Sequence[np.ndarray],
  room_D: Sequence[int],
  parts: Parts,
  part_X: np.ndarray,
  span: np.ndarray,
) -> Iterator[tuple[int, Block]]:
  """The blocks, each with the number of its document."""
  # The spans of part k are those from span_bounds[k] to span_bounds[k + 1].
  span_bounds = part_X.searchsorted(np.arange(len(parts.start) + 1))
  sentence = np.stack(
    [parts.bounds[:-1], parts.bounds[1:], span_bounds[1:]], axis=1
  )
  hashes = _hashes(parts)
  starts, ends = parts.start.tolist(), parts.end.tolist()
  for document, first, last in _pack(parts, room_D):
    begin, end = parts.bounds[first], parts.bounds[last]
    begin_X, end_X = span_bounds[first], span_bounds[last]
    yield (
      document,
      Block(
        titles[document],
        parts.pieces.ids[begin:end],
        text[starts[first] : ends[last - 1]],
        sentence[first:last] - (begin, begin, begin_X),
        hashes[first:last],
        span[begin_X:end_X] - begin,
      ),
    )


def _pack(
  parts: Parts, room_D: Sequence[int]
) -> Iterator[tuple[int, int, int]]:
  """Documents, firsts and lasts of neighbours that share a block."""
  sizes = np.diff(parts.bounds).tolist()
  current, first, used = -1, 0, 0
  number = 0
  for number, document in enumerate(parts.document.tolist()):
    if document != current or used + sizes[number] > room_D[document]:
      if number:
        yield current, first, number
      current, first, used = document, number, 0
    used += sizes[number]
  if sizes:
    yield current, first, number + 1


def _hashes(parts: Parts) -> np.ndarray:
  bounds, ids = parts.bounds.tolist(), parts.pieces.ids
  digests = b''.join(
    hashlib.blake2b(ids[first:last], digest_size=8).digest()
    for first, last in itertools.pairwise(bounds)
  )
  return np.frombuffer(digests, '<u8')


def _spans(
  text: str, parts: Parts, tokenizer: WordPiece, tagger: Tagger
) -> tuple[np.ndarray, np.ndarray]:
  """The salient spans: the part of each, and [X, 2] start and end as whole
  words in wordpieces."""
  part_X, start_X, end_X = tag_all(
    tagger,
    [
      text[start:end]
      for start, end in zip(
        parts.start.tolist(), parts.end.tolist(), strict=True
      )
    ],
  )
  begin_X, stop_X = parts.bounds[part_X], parts.bounds[part_X + 1]
  shift_X = parts.start[part_X]
  first_X = parts.pieces.ends.searchsorted(start_X + shift_X, 'right')
  last_X = parts.pieces.starts.searchsorted(end_X + shift_X)
  first_X = np.clip(first_X, begin_X, stop_X)
  last_X = np.clip(last_X, begin_X, stop_X)
  # A piece and one more: the first of its word, the next that begins a word.
  place = np.arange(len(parts.pieces.ids) + 1)
  continues = np.append(tokenizer.continues[parts.pieces.ids], False)
  word = np.maximum.accumulate(np.where(continues, 0, place))
  next_word = np.where(continues, len(place), place)[::-1]
  next_word = np.minimum.accumulate(next_word)[::-1]
  inside_X = first_X < stop_X
  first_X[inside_X] = np.maximum(word[first_X], begin_X)[inside_X]
  last_X = np.minimum(next_word[last_X], stop_X)
  # No wordpiece is in two spans.
  taken_X = np.maximum.accumulate(last_X)
  first_X[1:] = np.maximum(first_X[1:], taken_X[:-1])
  keep_X = first_X < last_X
  return part_X[keep_X], np.stack([first_X, last_X], axis=1)[keep_X]
