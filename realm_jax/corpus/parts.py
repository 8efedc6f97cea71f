"""The sentences of documents with their wordpieces, in arrays.

[D]: by document; [S]: by sentence; [K]: by part (a sentence, or a piece of one
that no block can hold whole).
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

from realm_jax.text.sentences import split_sentences
from realm_jax.text.units import Pieces
from realm_jax.text.wordpiece import WordPiece


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
  """Sentences, or parts of some: their characters and their wordpieces.

  Attributes:
    document: [K].
    start: [K], in characters of the text.
    end: [K].
    bounds: [K + 1], in `pieces`, all of which belong to a part.
    pieces: places are in characters of the text, too.
  """

  document: np.ndarray
  start: np.ndarray
  end: np.ndarray
  bounds: np.ndarray
  pieces: Pieces

  def slice(self, first: int, last: int) -> Self:
    own = slice(first, last)
    bounds = self.bounds[first : last + 1]
    return type(self)(
      self.document[own],
      self.start[own],
      self.end[own],
      bounds - bounds[0],
      Pieces(*(column[bounds[0] : bounds[-1]] for column in self.pieces)),
    )

  @classmethod
  def join(cls, several: Sequence[Self]) -> Self:
    sizes = [np.diff(parts.bounds) for parts in several]
    return cls(
      np.concatenate([parts.document for parts in several]),
      np.concatenate([parts.start for parts in several]),
      np.concatenate([parts.end for parts in several]),
      np.concatenate([[0], *sizes]).cumsum(),
      Pieces(
        *map(
          np.concatenate,
          zip(*(parts.pieces for parts in several), strict=True),
        )
      ),
    )


def find_sentences(texts: Sequence[str], tokenizer: WordPiece) -> Parts:
  """The sentences of texts that are joined by line breaks.

  Sentences that the tokenizer sees no word boundary between are one: it
  deletes some characters that count as white space elsewhere.
  """
  pieces = tokenizer.encode_arrays('\n'.join(texts))
  split = [split_sentences(text) for text in texts]
  begin_D = np.cumsum([0] + [len(text) + 1 for text in texts])
  count_D = np.fromiter(map(len, split), np.int64, len(split))
  document_S = np.repeat(np.arange(len(texts)), count_D)
  flat = itertools.chain.from_iterable(itertools.chain.from_iterable(split))
  places = np.fromiter(flat, np.int64, 2 * len(document_S)).reshape(-1, 2)
  start_S, end_S = (places + begin_D[document_S][:, None]).T
  # A sentence has the wordpieces from its first to that of the next one.
  bound_D = pieces.starts.searchsorted(begin_D)
  first_S = pieces.starts.searchsorted(start_S)
  opens_S = np.diff(document_S, prepend=-1) > 0
  first_S[opens_S] = bound_D[document_S[opens_S]]
  keep_S = first_S < bound_D[document_S + 1]
  inner = np.flatnonzero(keep_S & ~opens_S)
  first = first_S[inner]
  keep_S[inner] = (
    (first > first_S[inner - 1])
    & ~tokenizer.continues[pieces.ids[first]]
    & (pieces.ends[first - 1] <= start_S[inner])
  )
  kept = np.flatnonzero(keep_S)
  document_K = document_S[kept]
  bounds = np.append(first_S[kept], len(pieces.ids))
  # What follows it and is not kept belongs to it, within its document.
  last = np.append(kept[1:], len(keep_S)) - 1
  last = np.minimum(last, count_D.cumsum()[document_K] - 1)
  return Parts(
    document_K,
    np.minimum(start_S[kept], pieces.starts[bounds[:-1]]),
    np.maximum(end_S[last], pieces.ends[bounds[1:] - 1]),
    bounds,
    pieces,
  )


def cut_parts(
  text: str,
  parts: Parts,
  long: Sequence[int],
  room_D: Sequence[int],
  tokenizer: WordPiece,
) -> Parts:
  """Puts parts that fit in the place of those that are too long.

  Args:
    text: of all documents.
    parts: of it.
    long: numbers of those to cut, in their order.
    room_D: how many wordpieces a part of each document may have.
    tokenizer: that of the parts.

  Returns:
    The parts.
  """
  several, done = [], 0
  for number in long:
    several.append(parts.slice(done, number))
    several += _cut(text, parts.slice(number, number + 1), room_D, tokenizer)
    done = number + 1
  return Parts.join([*several, parts.slice(done, len(parts.start))])


def _cut(
  text: str, part: Parts, room_D: Sequence[int], tokenizer: WordPiece
) -> Iterator[Parts]:
  """Cuts a sentence that is too long, between words if it can.

  Each part is encoded by itself, so that its ids are those of its text also
  when a word had to be cut.
  """
  start, last = int(part.start[0]), int(part.end[0])
  room = room_D[part.document[0]]
  window = 8 * room
  while start < last:
    stop = min(start + window, last)
    ids, starts, ends = tokenizer.encode_arrays(text[start:stop])
    if len(ids) <= room and stop < last:
      window *= 2  # wide pieces or much white space
      continue
    count = _fitting(ids, starts, ends, room, tokenizer)
    if not count:
      return  # nothing but characters that the tokenizer deletes
    end = start + int(ends[count - 1]) if count < len(ids) else stop
    yield Parts(
      part.document,
      np.array([start]),
      np.array([end]),
      np.array([0, count]),
      Pieces(ids[:count], start + starts[:count], start + ends[:count]),
    )
    start = start + int(starts[count]) if count < len(ids) else stop


def _fitting(
  ids: np.ndarray,
  starts: np.ndarray,
  ends: np.ndarray,
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
    count for count in range(room, 0, -1) if starts[count] >= ends[count - 1]
  )
