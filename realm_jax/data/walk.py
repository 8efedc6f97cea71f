"""From a step to masked sentences, for the warm start and pre-training."""

from typing import NamedTuple

import numpy as np

from realm_jax.config import Config
from realm_jax.data import masking, order, sentences


class Drawn(NamedTuple):
  """The sentences of a step's batch."""

  row_B: np.ndarray  # their blocks
  sentence_B: np.ndarray  # their numbers in the corpus
  start_B: np.ndarray  # of the span to mask, from the sentence's start
  end_B: np.ndarray  # one past its last wordpiece
  random_BR: np.ndarray  # for uniform masking; behind it the extra draws


class SentenceWalk:
  """Visits the blocks epoch by epoch, a sentence of each; masks its text.

  Attributes:
    counts: `blocks` of an epoch; the blocks left out (`removed` from the
      corpus, `without_sentence` to mask in); `spans_too_wide`.
    eligible: bool [sentences], those that can be drawn.
    steps_per_epoch: rounded up.
  """

  def __init__(
    self,
    corpus,
    config: Config,
    length: int,
    max_width: int,
    process_index: int,
    process_count: int,
    extra_draws: int = 0,
  ):
    """Reads the corpus's sentence table.

    Args:
      corpus: a Corpus.
      config: batch_size (global), masking, mask_rate, max_masks, seed.
      length: L of the texts that are masked.
      max_width: of a span.
      process_index: which slice of the batch is drawn.
      process_count: slices of a batch.
      extra_draws: random numbers that the caller wants of each sentence.

    Raises:
      ValueError: no block can be used, or the batch cannot be sliced.
    """
    self._config = config
    self._mask_id = corpus.tokenizer.mask_id
    self._frame_ids = (0, corpus.tokenizer.cls_id, corpus.tokenizer.sep_id)
    self._ordinary_ids = masking.ordinary_ids(corpus.tokenizer)
    self._sampler = sentences.SentenceSampler(
      corpus.sentences, config.masking, max_width
    )
    self.eligible = self._sampler.eligible
    self._rows, self.counts = sentences.usable_blocks(
      corpus, self._sampler, config.masking
    )
    self._order = order.Order(
      len(self._rows), config.batch_size, config.seed,
      process_index, process_count,
    )  # fmt: skip
    self.steps_per_epoch = self._order.steps_per_epoch
    self._draws = self._sampler.draws + extra_draws
    if config.masking == 'uniform':
      self._draws += masking.uniform_draws(length, config.max_masks)

  def rows(self, step: int) -> np.ndarray:
    """The blocks of a step."""
    return self._rows[self._order.visit(step)[1]]

  def draw(self, step: int) -> Drawn:
    """The sentences of a step, the same ones at every call."""
    row_B = self.rows(step)
    random_BR = self._order.random(step, self._draws)
    return Drawn(
      row_B,
      *self._sampler.pick(row_B, random_BR),
      random_BR[:, self._sampler.draws :],
    )

  def mask(
    self, token_BL: np.ndarray, drawn: Drawn, place_B: np.ndarray | int
  ) -> masking.Masked:
    """Masks texts made of drawn sentences.

    Uniform masking takes from the whole text, the others the drawn span.

    Args:
      token_BL: texts that hold the sentences.
      drawn: of `draw`.
      place_B: where in its text each sentence starts (negative if cropped).
    """
    config = self._config
    if config.masking == 'uniform':
      return masking.mask_uniform(
        token_BL,
        ~np.isin(token_BL, self._frame_ids),
        config.mask_rate,
        config.max_masks,
        self._mask_id,
        self._ordinary_ids,
        drawn.random_BR,
      )
    return masking.mask_span(
      token_BL,
      drawn.start_B + place_B,
      drawn.end_B + place_B,
      config.max_masks,
      self._mask_id,
    )
