"""Inverse cloze task: a sentence is the query, its block the document.

Section 3.4 of the paper (warm start); removal as in ORQA.
"""

import numpy as np

from realm_jax.data import order, sentences


class IctSource:
  """Pairs of a sentence and its block; `source[step]` is a batch.

  A sentence is taken out of its block with probability `removal`. A block of
  one sentence would be left empty, so it is used only unremoved: an epoch has
  all blocks of several sentences and a share of 1 - removal of the blocks of
  one; the next epoch takes the next share of those.

  A batch holds, int32:
    query_BL [B, query_length]: `[CLS] sentence [SEP]`, padded with 0; longer
      sentences are cut at the end.
    block_BL [B, block_length]: `[CLS] title [SEP] body [SEP]`, padded with 0.

  Attributes:
    counts: `blocks` of an epoch, the blocks that are left out (`removed`
      from the corpus, `without_sentence`, `one_sentence_skipped` in each
      epoch), and `sentences_truncated` of the corpus.
    steps_per_epoch: rounded up.
  """

  def __init__(
    self,
    corpus,
    batch_size: int,
    query_length: int,
    removal: float,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Reads the corpus's sentence table.

    Args:
      corpus: a Corpus.
      batch_size: global.
      query_length: wordpieces, [CLS] and [SEP] included.
      removal: probability, in [0, 1].
      seed: of the run.
      process_index: which slice of the batch this source makes.
      process_count: slices of a batch.

    Raises:
      ValueError: no block can be used, or the batch cannot be sliced.
    """
    self._corpus = corpus
    self._query_length = query_length
    self._removal = removal
    self._seed = seed
    table = corpus.sentences
    self._choices = sentences.Choices(
      table.block_offsets, np.asarray(table.end) > np.asarray(table.start)
    )
    alive_N = sentences.alive_rows(corpus)
    count_N = self._choices.count
    self._several = np.flatnonzero(alive_N & (count_N > 1))
    self._single = np.flatnonzero(alive_N & (count_N == 1))
    self._single_share = round(len(self._single) * (1 - removal))
    num_items = len(self._several) + self._single_share
    self.counts = {
      'blocks': num_items,
      'removed': int((~alive_N).sum()),
      'without_sentence': int((alive_N & (count_N == 0)).sum()),
      'one_sentence_skipped': len(self._single) - self._single_share,
      'sentences_truncated': int(
        (np.asarray(table.end) - table.start > query_length - 2).sum()
      ),
    }
    if not num_items:
      raise ValueError(
        f'{corpus.path}: no block for ICT, needs blocks of two sentences or '
        f'more (sentence_removal {removal}); {self.counts}'
      )
    self._order = order.Order(
      num_items, batch_size, seed, process_index, process_count
    )
    self.steps_per_epoch = self._order.steps_per_epoch

  def ids(self, step: int) -> list[str]:
    """Which blocks a step's batch is made of."""
    return sentences.block_ids(self._corpus, self._rows(step)[0])

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    row_B, several_B = self._rows(step)
    draw_BR = self._order.random(step, 2)
    sentence_B = self._choices.pick(row_B, draw_BR[:, 0])
    remove_B = several_B & (draw_BR[:, 1] < self._removal)
    tokenizer = self._corpus.tokenizer
    block_BL = self._corpus.tokens(row_B)
    body_B, _ = sentences.body_bounds(block_BL, tokenizer.sep_id)
    table = self._corpus.sentences
    start_B = body_B + table.start[sentence_B]
    end_B = body_B + table.end[sentence_B]
    query_BL = sentences.frame(
      block_BL,
      start_B,
      end_B,
      self._query_length,
      tokenizer.cls_id,
      tokenizer.sep_id,
    )
    # What stands behind a removed sentence moves up.
    width_B = np.where(remove_B, end_B - start_B, 0)
    index_BL = np.broadcast_to(np.arange(block_BL.shape[1]), block_BL.shape)
    index_BL = index_BL + np.where(
      index_BL >= start_B[:, None], width_B[:, None], 0
    )
    kept_BL = sentences.gather(block_BL, index_BL, index_BL < block_BL.shape[1])
    return {'query_BL': query_BL, 'block_BL': kept_BL}

  def _rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a batch, and whether each has several sentences."""
    epoch_B, item_B = self._order.visit(step)
    several_B = item_B < len(self._several)
    row_B = np.empty_like(item_B)
    row_B[several_B] = self._several[item_B[several_B]]
    place_B = (epoch_B * self._single_share + item_B - len(self._several))[
      ~several_B
    ]
    row_B[~several_B] = self._single[
      order.rotate(place_B, len(self._single), self._seed)
    ]
    return row_B, several_B
