"""Blocks taken apart: their sentences as arrays of token ids."""

import numpy as np

from realm_jax.data import masking


class Choices:
  """The eligible items of each owner (sentences of blocks, spans of sentences).

  Attributes:
    count: eligible items of each owner, int64 [owners].
  """

  def __init__(self, offsets: np.ndarray, eligible: np.ndarray):
    """Items of owner n are range(offsets[n], offsets[n + 1]).

    Args:
      offsets: [owners + 1].
      eligible: bool [items].
    """
    before = np.zeros(len(eligible) + 1, np.int64)
    np.cumsum(eligible, out=before[1:])
    self._items = np.flatnonzero(eligible)
    self._offsets = before[offsets]
    self.count = np.diff(self._offsets)

  def pick(self, owner_B: np.ndarray, random_B: np.ndarray) -> np.ndarray:
    """One item of each owner, evenly drawn by random_B in [0, 1)."""
    place_B = (random_B * self.count[owner_B]).astype(np.int64)
    return self._items[self._offsets[owner_B] + place_B]


def block_ids(corpus, row_B: np.ndarray) -> list[str]:
  """Blocks as messages name them."""
  return [f'{corpus.document_id(row)} (block {row})' for row in row_B.tolist()]


def alive_rows(corpus) -> np.ndarray:
  """bool [N]: rows that were not removed."""
  return np.asarray(corpus.alive(0, corpus.num_blocks), bool)


def body_bounds(
  block_BL: np.ndarray, sep_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Start and end (exclusive) of the body of `[CLS] title [SEP] body [SEP]`."""
  start_B = (block_BL == sep_id).argmax(1) + 1
  return start_B, (block_BL != 0).sum(1) - 1


def gather(
  token_BL: np.ndarray, index_BL: np.ndarray, keep_BL: np.ndarray
) -> np.ndarray:
  """token_BL at index_BL as int32 where keep_BL, else 0 (padding)."""
  index_BL = np.clip(index_BL, 0, token_BL.shape[1] - 1)
  taken_BL = np.take_along_axis(token_BL, index_BL, 1)
  return np.where(keep_BL, taken_BL, 0).astype(np.int32)


def frame(
  token_BL: np.ndarray,
  start_B: np.ndarray,
  end_B: np.ndarray,
  length: int,
  cls_id: int,
  sep_id: int,
) -> np.ndarray:
  """`[CLS] token_BL[start:end] [SEP]`, padded: int32 [B, length].

  What does not fit into length - 2 is cut off at the end.
  """
  width_B = np.minimum(end_B - start_B, length - 2)
  place_L = np.arange(length)
  framed_BL = gather(
    token_BL,
    start_B[:, None] + place_L[None] - 1,
    place_L[None] <= width_B[:, None],
  )
  framed_BL[:, 0] = cls_id
  framed_BL[np.arange(len(framed_BL)), width_B + 1] = sep_id
  return framed_BL


class SentenceSampler:
  """Draws a sentence of a block and, but for uniform masking, a span in it.

  Only sentences with something to mask are drawn: for salient masking those
  with a salient span of at most max_width wordpieces.

  Attributes:
    count: sentences of each block that can be drawn, int64 [N].
    eligible: bool [sentences].
    spans_too_wide: salient spans that are left out.
  """

  draws = 3  # random numbers for each example

  def __init__(self, table, kind: str, max_width: int):
    """Args: a corpus's `sentences`, config.masking, a span's widest."""
    self._table = table
    self._kind = kind
    self._max_width = max_width
    self.eligible = np.asarray(table.end) > np.asarray(table.start)
    self.spans_too_wide = 0
    if kind == 'salient':
      width_P = np.asarray(table.span_end) - np.asarray(table.span_start)
      self._spans = Choices(table.span_offsets, width_P <= max_width)
      self.eligible &= self._spans.count > 0
      self.spans_too_wide = int((width_P > max_width).sum())
    self._sentences = Choices(table.block_offsets, self.eligible)
    self.count = self._sentences.count

  def pick(
    self, row_B: np.ndarray, random_BR: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sentence numbers, and start and end of the span from the sentence's.

    For uniform masking, start and end are those of the sentence.
    """
    sentence_B = self._sentences.pick(row_B, random_BR[:, 0])
    start_B = self._table.start[sentence_B].astype(np.int64)
    length_B = self._table.end[sentence_B] - start_B
    if self._kind == 'salient':
      span_B = self._spans.pick(sentence_B, random_BR[:, 1])
      return (
        sentence_B,
        self._table.span_start[span_B] - start_B,
        self._table.span_end[span_B] - start_B,
      )
    if self._kind == 'random_span':
      return sentence_B, *masking.draw_span(
        length_B, self._max_width, random_BR[:, 1:3]
      )
    return sentence_B, np.zeros_like(length_B), length_B


def usable_blocks(
  corpus, sampler: SentenceSampler, kind: str
) -> tuple[np.ndarray, dict[str, int]]:
  """Rows that the sampler can draw from, and the counts of the others.

  Raises:
    ValueError: there is none.
  """
  alive_N = alive_rows(corpus)
  row_N = np.flatnonzero(alive_N & (sampler.count > 0))
  counts = {
    'blocks': len(row_N),
    'removed': int((~alive_N).sum()),
    'without_sentence': int((alive_N & (sampler.count == 0)).sum()),
    'spans_too_wide': sampler.spans_too_wide,
  }
  if not len(row_N):
    raise ValueError(
      f'{corpus.path}: no block has a sentence for masking={kind}; {counts}'
    )
  return row_N, counts
