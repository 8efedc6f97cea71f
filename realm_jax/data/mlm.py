"""Masked language modelling over sentence and rest: the warm start.

BERT's own form with two segments, so that the encoder learns to fill one text
from the other before a retriever supplies it. Where the other
text holds the sentence too (`copy_rate`), it learns to copy: a thing that a
reader of retrieved passages must do, and that it finds out late by itself.
"""

import numpy as np

from realm_jax.config import Config
from realm_jax.data import sentences
from realm_jax.data.walk import SentenceWalk


class MlmSource:
  """`[CLS] A [SEP] B [SEP]`: A a sentence, B the rest of its block, in order.

  At `copy_rate` B is the whole block without its title, cut at its end where
  that would be too long.

  Masking uniform: BERT's 80/10/10 over both segments at mask_rate; salient
  and random_span: one span of A, all [MASK]. Never more than max_masks.

  A batch holds, L the corpus's block length, M max_masks, int32:
    token_BL, segment_BL: 0 up to the first [SEP], 1 after it, 0 in padding.
    position_BM, target_BM: masked places and their tokens, padded with 0.
    weight_BM: float32, 1 for real places.

  Attributes:
    counts: `blocks` of an epoch; the blocks left out (`removed` from the
      corpus, `without_sentence` to mask in); `spans_too_wide`.
    steps_per_epoch: rounded up.
  """

  def __init__(
    self,
    corpus,
    config: Config,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Reads the corpus's sentence table.

    Args:
      corpus: a Corpus.
      config: batch_size (global), masking, mask_rate, max_masks, copy_rate,
        seed.
      process_index: which slice of the batch this source makes.
      process_count: slices of a batch.

    Raises:
      ValueError: no block can be used, or the batch cannot be sliced.
    """
    self._corpus = corpus
    self._walk = SentenceWalk(
      corpus,
      config,
      corpus.block_length,
      config.max_masks,
      process_index,
      process_count,
      extra_draws=int(config.copy_rate > 0),
    )
    self._copy_rate = config.copy_rate
    self.counts = self._walk.counts
    self.steps_per_epoch = self._walk.steps_per_epoch

  def ids(self, step: int) -> list[str]:
    """Which blocks a step's batch is made of."""
    return sentences.block_ids(self._corpus, self._walk.rows(step))

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    drawn = self._walk.draw(step)
    copied_B = np.zeros(len(drawn.row_B), bool)
    if self._copy_rate:
      copied_B = drawn.random_BR[:, -1] < self._copy_rate
    token_BL, segment_BL = self._join(
      self._corpus.tokens(drawn.row_B), drawn.sentence_B, copied_B
    )
    masked_BL, position_BM, target_BM, weight_BM = self._walk.mask(
      token_BL,
      drawn,
      1,  # behind [CLS]
    )
    return {
      'token_BL': masked_BL,
      'segment_BL': segment_BL,
      'position_BM': position_BM,
      'target_BM': target_BM,
      'weight_BM': weight_BM,
    }

  def _join(
    self, block_BL: np.ndarray, sentence_B: np.ndarray, copied_B: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and segments of `[CLS] A [SEP] B [SEP]`.

    Without a copy it is the block without its title, with one [SEP] in another
    place, and fits in the length.
    """
    tokenizer, table = self._corpus.tokenizer, self._corpus.sentences
    body_B, end_B = sentences.body_bounds(block_BL, tokenizer.sep_id)
    start_B1 = (body_B + table.start[sentence_B])[:, None]
    width_B1 = (table.end[sentence_B] - table.start[sentence_B])[:, None]
    gone_B1 = np.where(copied_B[:, None], 0, width_B1)  # of B
    length = block_BL.shape[1]
    place_BL = np.arange(length)[None]
    first_B1 = width_B1 + 1  # place of the first [SEP]
    last_B1 = first_B1 + 1 + (end_B - body_B)[:, None] - gone_B1
    last_B1 = np.minimum(last_B1, length - 1)
    in_first_BL = place_BL < first_B1
    rest_BL = body_B[:, None] + place_BL - first_B1 - 1
    rest_BL = rest_BL + np.where(rest_BL >= start_B1, gone_B1, 0)
    token_BL = sentences.gather(
      block_BL,
      np.where(in_first_BL, start_B1 + place_BL - 1, rest_BL),
      place_BL < last_B1,
    )
    token_BL[:, 0] = tokenizer.cls_id
    for separator_B1 in (first_B1, last_B1):
      np.put_along_axis(
        token_BL, separator_B1.astype(np.int64), tokenizer.sep_id, 1
      )
    segment_BL = (place_BL > first_B1) & (place_BL <= last_B1)
    return token_BL, segment_BL.astype(np.int32)
