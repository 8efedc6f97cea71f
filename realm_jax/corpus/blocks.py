"""Documents to blocks: whole sentences, packed greedily."""

import bisect
import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from realm_jax.corpus.sources import Document
from realm_jax.text.sentences import split_sentences
from realm_jax.text.tagger import Tagger
from realm_jax.text.wordpiece import Encoding, WordPiece

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
    title: token ids.
    body: token ids, int32: what the tokenizer gives for `text`.
    text: of the body, a slice of the document's text.
    sentences: of the body, from its start to its end.
  """

  title: list[int]
  body: np.ndarray
  text: str
  sentences: list[Sentence]


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
  """A sentence in its document: its characters and those of its wordpieces."""

  start: int
  end: int
  ids: np.ndarray
  starts: np.ndarray
  ends: np.ndarray


def split_document(
  document: Document,
  tokenizer: WordPiece,
  tagger: Tagger,
  block_length: int,
  counts: collections.Counter[str],
) -> list[Block]:
  """Splits a document into blocks of at most block_length wordpieces.

  A block takes sentences for as long as they fit beside the title and three
  special tokens. A sentence is cut only when no block can hold it, between
  words if possible. A title takes at most half of the room.

  Args:
    document: what to split.
    tokenizer: for title and text.
    tagger: marks the salient spans of a sentence.
    block_length: at least MIN_BLOCK_LENGTH.
    counts: gets what was cut or is empty, under its names in the manifest.

  Returns:
    The blocks in order; none when the text has no wordpiece at all.
  """
  title, _ = tokenizer.encode(document.title)
  most = (block_length - NUM_SPECIAL) // 2
  counts['num_cut_titles'] += len(title) > most
  title = title[:most]
  room = block_length - NUM_SPECIAL - len(title)
  parts = []
  for part in _sentences(document.text, tokenizer):
    if len(part.ids) <= room:
      parts.append(part)
    else:
      counts['num_cut_sentences'] += 1
      parts.extend(_cut(document.text, part, room, tokenizer))
  blocks = [
    _block(document.text, title, group, tokenizer, tagger)
    for group in _pack(parts, room)
  ]
  counts['num_empty_documents'] += not blocks
  counts['num_sentences_without_span'] += sum(
    not sentence.spans for block in blocks for sentence in block.sentences
  )
  return blocks


def _sentences(text: str, tokenizer: WordPiece) -> list[_Part]:
  """The sentences with their wordpieces.

  Sentences that the tokenizer sees no word boundary between are one: it
  deletes some characters that count as white space elsewhere.
  """
  ids, starts_P, ends_P = tokenizer.encode_arrays(text)
  if not ids:
    return []
  ids_P = np.array(ids, np.int32)
  start_S, end_S = np.array(split_sentences(text)).T
  first_S = starts_P.searchsorted(start_S)
  first_S[0] = 0
  inner_S = np.minimum(first_S, len(ids_P) - 1)[1:]
  keep_S = first_S < len(ids_P)
  keep_S[1:] &= first_S[1:] > first_S[:-1]
  keep_S[1:] &= ~tokenizer.continues[ids_P[inner_S]]
  keep_S[1:] &= ends_P[inner_S - 1] <= start_S[1:]
  kept = keep_S.nonzero()[0]
  first_S, start_S = first_S[kept], start_S[kept]
  last_S = np.append(first_S[1:], len(ids_P))
  start_S = np.minimum(start_S, starts_P[first_S])
  end_S = end_S[np.append(kept[1:], len(end_S)) - 1]
  end_S = np.maximum(end_S, ends_P[last_S - 1])
  return [
    _Part(
      start, end, ids_P[first:last], starts_P[first:last], ends_P[first:last]
    )
    for start, end, first, last in np.stack(
      [start_S, end_S, first_S, last_S], axis=1
    ).tolist()
  ]


def _as_arrays(encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
  """Ids int32 [P], and starts and ends of their characters [2, P]."""
  ids, offsets = encoding
  flat = itertools.chain.from_iterable(offsets)
  places = np.fromiter(flat, np.int64, 2 * len(ids)).reshape(-1, 2).T
  return np.array(ids, np.int32), np.ascontiguousarray(places)


def _cut(
  text: str, part: _Part, room: int, tokenizer: WordPiece
) -> Iterator[_Part]:
  """Cuts a sentence of more than `room` wordpieces, between words if it can.

  Each part is encoded by itself, so that its ids are those of its text also
  when a word had to be cut.
  """
  start, window = part.start, 8 * room
  while start < part.end:
    stop = min(start + window, part.end)
    ids, offsets = tokenizer.encode(text[start:stop])
    if len(ids) <= room and stop < part.end:
      window *= 2  # wide pieces or much white space
      continue
    count = _fitting(ids, offsets, room, tokenizer)
    if not count:
      return  # nothing but characters that the tokenizer deletes
    end = start + offsets[count - 1][1] if count < len(ids) else stop
    ids_P, (starts_P, ends_P) = _as_arrays((ids[:count], offsets[:count]))
    yield _Part(start, end, ids_P, start + starts_P, start + ends_P)
    start = start + offsets[count][0] if count < len(ids) else stop


def _fitting(
  ids: list[int],
  offsets: list[tuple[int, int]],
  room: int,
  tokenizer: WordPiece,
) -> int:
  """How many of the first wordpieces a part takes."""
  if len(ids) <= room:
    return len(ids)
  for count in range(room, 0, -1):
    if not tokenizer.continues[ids[count]]:
      return count
  # One word fills the part. The pieces of one character stay together.
  return next(
    count
    for count in range(room, 0, -1)
    if offsets[count][0] >= offsets[count - 1][1]
  )


def _pack(parts: Sequence[_Part], room: int) -> Iterator[list[_Part]]:
  """Groups of neighbours of at most `room` wordpieces."""
  group: list[_Part] = []
  used = 0
  for part in parts:
    if group and used + len(part.ids) > room:
      yield group
      group, used = [], 0
    group.append(part)
    used += len(part.ids)
  if group:
    yield group


def _block(
  text: str,
  title: list[int],
  parts: Sequence[_Part],
  tokenizer: WordPiece,
  tagger: Tagger,
) -> Block:
  sentences, start = [], 0
  for part in parts:
    digest = hashlib.blake2b(part.ids, digest_size=8)
    sentences.append(
      Sentence(
        start,
        start + len(part.ids),
        int.from_bytes(digest.digest(), 'little'),
        [
          (start + first, start + last)
          for first, last in _spans(text, part, tokenizer, tagger)
        ],
      )
    )
    start += len(part.ids)
  return Block(
    title,
    np.concatenate([part.ids for part in parts]),
    text[parts[0].start : parts[-1].end],
    sentences,
  )


def _spans(
  text: str, part: _Part, tokenizer: WordPiece, tagger: Tagger
) -> Iterator[tuple[int, int]]:
  """Salient spans in wordpieces of the part, widened to whole words."""
  spans = tagger(text[part.start : part.end])
  if not spans:
    return
  starts, ends = part.starts.tolist(), part.ends.tolist()
  continues = tokenizer.continues[part.ids].tolist()
  free = 0  # first wordpiece after the span before
  for start, end in spans:
    first = bisect.bisect_right(ends, part.start + start)
    last = bisect.bisect_left(starts, part.start + end)
    while 0 < first < len(ends) and continues[first]:
      first -= 1
    while last < len(ends) and continues[last]:
      last += 1
    first = max(first, free)
    if first < last:
      yield first, last
      free = last
