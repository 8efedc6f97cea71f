"""How much of what exact search finds a build finds: its recall."""

import jax
import numpy as np

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.data import sentences
from realm_jax.index import exact, shards
from realm_jax.parallel import processes

K = 8
_QUERIES = 64


def probe_queries(corpus: Corpus, config: Config) -> np.ndarray:
  """Sentences of the corpus, [B, L] token ids.

  They are embedded as documents are: a builder has no query embedder.
  """
  row_B = np.linspace(0, corpus.num_blocks - 1, _QUERIES).astype(int)
  row_B = np.unique(row_B)
  token_BL = corpus.tokens(row_B)
  tokenizer = corpus.tokenizer
  body_B, end_B = sentences.body_bounds(token_BL, tokenizer.sep_id)
  bounds_B2 = np.stack([np.zeros_like(body_B), end_B - body_B], 1)
  for bounds_2, row in zip(bounds_B2, row_B, strict=True):
    bounds_S2 = corpus.sentence_bounds(int(row))
    if len(bounds_S2):  # else all that the block says
      bounds_2[:] = bounds_S2[len(bounds_S2) // 2]
  return sentences.frame(
    token_BL,
    body_B + bounds_B2[:, 0],
    body_B + bounds_B2[:, 1],
    min(config.query_length, corpus.block_length),
    tokenizer.cls_id,
    tokenizer.sep_id,
  )


def recall_of(row_BK: np.ndarray, exact_BK: np.ndarray) -> float:
  """The share of the rows of exact search that were found."""
  hits = (exact_BK[:, :, None] == row_BK[:, None, :]).any(2)
  return float(hits[exact_BK >= 0].mean())


class RecallProbe:
  """Measures how well the stored rows find what exact float32 rows find.

  The stored rows are searched as a device searches its own (exact.top_k), the
  others by numpy: what rounding costs is in it, and what is wrong with a
  device's search.

  Args:
    corpus: Z.
    query_BE: of `probe_queries`.
    block: index.search_block.
  """

  def __init__(self, corpus: Corpus, query_BE: np.ndarray, block: int):
    self.query_BE = query_BE
    self._corpus = corpus
    self._block = block
    # The best so far: scores and rows, [B, K].
    batch = len(query_BE)
    none = (np.zeros((batch, 0)), np.zeros((batch, 0), np.int64))
    self._exact, self._stored = none, none

  def add(
    self, start: int, exact_nE: np.ndarray, stored_nE: np.ndarray
  ) -> None:
    count = len(exact_nE)
    alive_n = self._corpus.alive(start, start + count)
    score_Bn = self.query_BE @ exact_nE.T
    score_Bn[:, ~alive_n] = -np.inf
    row_Bn = np.broadcast_to(np.arange(start, start + count), score_Bn.shape)
    self._exact = shards.best([self._exact, (score_Bn, row_Bn)], K)
    # Of few lengths: each is a program of its own.
    padding = (1 << (count - 1).bit_length()) - count
    score_BK, row_BK = jax.device_get(
      _top_k(
        np.pad(stored_nE, ((0, padding), (0, 0))),
        np.pad(alive_n, (0, padding)),
        self.query_BE,
        K,
        self._block,
      )
    )
    row_BK = np.where(score_BK == -np.inf, -1, row_BK + start)
    self._stored = shards.best([self._stored, (score_BK, row_BK)], K)

  def recall(self) -> dict[str, float]:
    """Of the rows of all processes together."""
    recall = recall_of(self.stored_rows(), self.exact_rows())
    return {f'recall@{K}': recall}

  def stored_rows(self) -> np.ndarray:
    """What exact search of the rows as stored finds; see exact_rows."""
    return _together(self._stored)

  def exact_rows(self) -> np.ndarray:
    """What exact search of the rows before rounding finds.

    [B, K], -1: none. All processes ask together.
    """
    return _together(self._exact)


_top_k = jax.jit(exact.top_k, static_argnums=(3, 4))


def _together(best: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
  """Rows of the best that all processes have seen, -1 for none."""
  everyone = processes.gather([shards.finite(best[0]), best[1].tolist()])
  return shards.best([tuple(map(np.array, x)) for x in everyone], K)[1]
