"""Fresh embeddings into the index within the step (beyond the paper).

An index that the step writes into is part of the training state: it is saved
and restored with it. Embeddings are those of the parameters that the step began
with, without dropout. What is renewed out of turn is written `level`: fresh
rows among old ones would win every search (index/write.py).
"""

from typing import Any

import jax
import jax.numpy as jnp

from realm_jax.config import Config
from realm_jax.index.gather import gather
from realm_jax.index.search import Index
from realm_jax.index.write import count_hits, most_hit, write_rows
from realm_jax.model import parts


def renew(
  index: Index,
  params: dict[str, Any],
  step: jax.Array,
  retrieved: dict[str, jax.Array],
  config: Config,
  num_rows: int,
  sep_id: int,
) -> Index:
  """The index with the rows that a step renews.

  Args:
    index: before.
    params: that the step began with.
    step: steps done before it.
    retrieved: row_BK, and fresh_BKE, embeddings of them, where the loss has
      some without dropout.
    config: static; `refresh.where` rolling renews the next slice of all rows,
      `refresh.write_back` those that were retrieved, `refresh.priority_rows`
      those that were retrieved most since they were made.
    num_rows: static, N.
    sep_id: static, id of [SEP].

  Returns:
    The index after.
  """
  refresh = config.refresh
  level = refresh.writes_level()

  def write(index: Index, row_BK: jax.Array) -> Index:
    fresh_BKE = _embed(index, params, row_BK, config, sep_id)
    return write_rows(index, row_BK, fresh_BKE, step, level)

  if refresh.where == 'rolling':
    row_B1 = _slice(step, num_rows, refresh.rows_per_step)[:, None]
    index = write(index, row_B1)
  if refresh.write_back and 'fresh_BKE' in retrieved:
    row_BK, fresh_BKE = retrieved['row_BK'], retrieved['fresh_BKE']
    return write_rows(index, row_BK, fresh_BKE, step, level)
  if refresh.write_back:
    return write(index, retrieved['row_BK'])
  if refresh.priority_rows:
    index = count_hits(index, retrieved['row_BK'])
    row_B1 = most_hit(index, refresh.priority_rows)[:, None]
    index = write(index, row_B1)
  return index


def rounds(num_rows: int, rows_per_step: int) -> int:
  """Steps that a rolling refresh takes to come to every row."""
  return -(-num_rows // rows_per_step)


def _slice(step: jax.Array, num_rows: int, count: int) -> jax.Array:
  """The rows of a step's turn; -1 behind the last one."""
  start = step % rounds(num_rows, count) * count
  row_B = start + jnp.arange(count, dtype=jnp.int32)
  return jnp.where(row_B < num_rows, row_B, -1)


def _embed(
  index: Index,
  params: dict[str, Any],
  row_BK: jax.Array,
  config: Config,
  sep_id: int,
) -> jax.Array:
  batch, count = row_BK.shape
  token_BKL = gather(index.tokens_NL, row_BK)
  embedder = parts.bind('embedder', config, params['document_embedder'])
  fresh = embedder(token_BKL.reshape(batch * count, -1), sep_id=sep_id)
  return fresh.reshape(batch, count, -1)
