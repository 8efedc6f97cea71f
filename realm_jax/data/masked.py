"""Pre-training examples: one masked sentence of X, and what Z must not give.

Section 3.4 of the paper: salient span masking, and no trivial retrieval.
"""

import numpy as np

from realm_jax.config import Config
from realm_jax.data import sentences
from realm_jax.data.walk import Drawn, SentenceWalk


class MaskedSentenceSource:
  """One masked sentence of each visited block of X; `source[step]` a batch.

  A batch holds, L query_length, M max_masks, X index.max_excluded, int32:
    query_BL: `[CLS] x [SEP]` with masks, padded with 0. A sentence longer
      than L - 2 is cropped around its span (uniform: at the end).
    position_BM, target_BM: masked places in query_BL, padded with 0.
    weight_BM: float32, 1 for real places.
    exclude_BX: rows of Z that hold the unmasked sentence verbatim (equal
      hash), the sentence's own block first when X is Z; padded with -1.
    sentence_B: number of the sentence in X.

  Attributes:
    counts: `blocks` of an epoch; blocks left out (`removed` from X,
      `without_sentence` to mask in); `spans_too_wide`; `sentences_without`
      anything to mask; `sentences_cropped`; `sentences_capped`: different
      sentences that more than X blocks of Z hold.
    steps_per_epoch: rounded up.
  """

  def __init__(
    self,
    text_corpus,
    corpus,
    config: Config,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Reads the sentence tables of both.

    Args:
      text_corpus: X, a Corpus.
      corpus: Z, a Corpus (may be X).
      config: batch_size (global), query_length, max_masks, masking,
        mask_rate, index.max_excluded, seed.
      process_index: which slice of the batch this source makes.
      process_count: slices of a batch.

    Raises:
      ValueError: the stores have different tokenizers, no block can be used,
        or the batch cannot be sliced.
    """
    if text_corpus.tokenizer_digest != corpus.tokenizer_digest:
      raise ValueError(
        f'text_corpus {text_corpus.path}: tokenizer '
        f'{text_corpus.tokenizer_digest}, must be that of corpus '
        f'{corpus.path}, {corpus.tokenizer_digest}: prepare both with one vocab'
      )
    self._corpus = text_corpus
    self._config = config
    room = config.query_length - 2
    table = text_corpus.sentences
    self._walk = SentenceWalk(
      text_corpus,
      config,
      config.query_length,
      min(config.max_masks, room),
      process_index,
      process_count,
    )
    eligible_S = self._walk.eligible
    length_S = np.asarray(table.end) - np.asarray(table.start)
    self._holders = _Holders(corpus)
    self._own = text_corpus.fingerprint == corpus.fingerprint
    self.counts = self._walk.counts | {
      'sentences_without': int((~eligible_S).sum()),
      'sentences_cropped': int((eligible_S & (length_S > room)).sum()),
      'sentences_capped': self._holders.count_beyond(config.index.max_excluded),
    }
    self.steps_per_epoch = self._walk.steps_per_epoch

  def ids(self, step: int) -> list[str]:
    """Which blocks a step's batch is made of."""
    return sentences.block_ids(self._corpus, self._walk.rows(step))

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    drawn = self._walk.draw(step)
    query_BL, crop_B = self._query(drawn)
    masked_BL, position_BM, target_BM, weight_BM = self._walk.mask(
      query_BL,
      drawn,
      1 - crop_B,  # behind [CLS]
    )
    return {
      'query_BL': masked_BL,
      'position_BM': position_BM,
      'target_BM': target_BM,
      'weight_BM': weight_BM,
      'exclude_BX': self._excluded(drawn),
      'sentence_B': drawn.sentence_B.astype(np.int32),
    }

  def _excluded(self, drawn: Drawn) -> np.ndarray:
    limit = self._config.index.max_excluded
    if not self._config.ban_trivial:
      return np.full((len(drawn.row_B), limit), -1, np.int32)
    return self._holders.find(
      self._corpus.sentences.hash[drawn.sentence_B],
      drawn.row_B if self._own else np.full_like(drawn.row_B, -1),
      limit,
    )

  def _query(self, drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
    """Unmasked `[CLS] x [SEP]`, and how much was cropped from x's start."""
    tokenizer, table = self._corpus.tokenizer, self._corpus.sentences
    sentence_B = drawn.sentence_B
    length = self._config.query_length
    room = length - 2
    block_BL = self._corpus.tokens(drawn.row_B)
    body_B, _ = sentences.body_bounds(block_BL, tokenizer.sep_id)
    width_B = table.end[sentence_B].astype(np.int64) - table.start[sentence_B]
    crop_B = np.zeros_like(width_B)
    if self._config.masking != 'uniform':
      middle_B = (drawn.start_B + drawn.end_B) // 2
      crop_B = np.clip(middle_B - room // 2, 0, np.maximum(width_B - room, 0))
    start_B = body_B + table.start[sentence_B]
    query_BL = sentences.frame(
      block_BL,
      start_B + crop_B,
      start_B + width_B,
      length,
      tokenizer.cls_id,
      tokenizer.sep_id,
    )
    return query_BL, crop_B


class _Holders:
  """Which blocks of Z hold a sentence: sorted pairs of hash and block.

  Blocks that were removed are found by nobody and excluded from nothing.
  """

  def __init__(self, corpus):
    table = corpus.sentences
    hash_S = np.asarray(table.hash)
    block_S = np.repeat(
      np.arange(corpus.num_blocks, dtype=np.int32),
      np.diff(table.block_offsets),
    )
    alive_S = sentences.alive_rows(corpus)[block_S]
    hash_S, block_S = hash_S[alive_S], block_S[alive_S]
    # Stable: blocks are ascending within a hash.
    by_hash_S = np.argsort(hash_S, kind='stable')
    hash_S, block_S = hash_S[by_hash_S], block_S[by_hash_S]
    again_S = np.zeros(len(hash_S), bool)  # twice in one block
    again_S[1:] = (hash_S[1:] == hash_S[:-1]) & (block_S[1:] == block_S[:-1])
    self._hash, self._block = hash_S[~again_S], block_S[~again_S]

  def count_beyond(self, limit: int) -> int:
    """How many different sentences stand in more than `limit` blocks."""
    if len(self._hash) <= limit:
      return 0
    beyond = self._hash[limit:] == self._hash[: len(self._hash) - limit]
    return len(np.unique(self._hash[limit:][beyond]))

  def find(
    self, hash_B: np.ndarray, own_B: np.ndarray, limit: int
  ) -> np.ndarray:
    """int32 [B, limit]: own_B (if not -1) first, then holders, then -1."""
    low_B = np.searchsorted(self._hash, hash_B, side='left')
    high_B = np.searchsorted(self._hash, hash_B, side='right')
    place_BX = low_B[:, None] + np.arange(limit)
    found_BX = place_BX < high_B[:, None]
    place_BX = np.minimum(place_BX, max(len(self._block) - 1, 0))
    block_BX = np.where(found_BX, self._block[place_BX], -1)
    block_BX[block_BX == own_B[:, None]] = -1
    block_BX = np.concatenate([own_B[:, None], block_BX], 1)
    to_front_BX = np.argsort(block_BX < 0, 1, kind='stable')
    block_BX = np.take_along_axis(block_BX, to_front_BX, 1)
    return block_BX[:, :limit].astype(np.int32)
