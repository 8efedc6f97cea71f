"""Exact search of one device's rows.

Scores are never a [B, n] matrix: rows are walked a block at a time with a
running top-k.
"""

import jax
import jax.numpy as jnp


def top_k(
  rows_nE: jax.Array,
  valid_n: jax.Array,
  query_BE: jax.Array,
  k: int,
  block: int,
) -> tuple[jax.Array, jax.Array]:
  """The k best of one device's rows; runs under `jax.shard_map`.

  Args:
    rows_nE: float32 or bfloat16.
    valid_n: rows that may be returned.
    query_BE: float32.
    k: may be more than n.
    block: rows that are scored at a time.

  Returns:
    score_BK float32, descending, and place_BK int32, counted from the device's
    first row; equal scores in order of row. What cannot be filled is -inf and
    any place.
  """
  n = rows_nE.shape[0]
  num_queries = query_BE.shape[0]
  block = min(block, n)
  num_blocks = -(-n // block)
  taken = min(k, block)
  # Sliced as integers: XLA's CPU backend hoists a conversion of bfloat16 rows
  # out of the loop, which would hold a float32 copy of the whole shard.
  bits = jnp.uint16 if rows_nE.dtype == jnp.bfloat16 else jnp.uint32
  bits_nE = jax.lax.bitcast_convert_type(rows_nE, bits)

  def body(
    best: tuple[jax.Array, jax.Array], i: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], None]:
    # The last block reaches back over rows already seen (a slice has one
    # size); those are masked.
    first = i * block
    start = jnp.minimum(first, n - block)
    rows_bE = jax.lax.bitcast_convert_type(
      jax.lax.dynamic_slice_in_dim(bits_nE, start, block), rows_nE.dtype
    )
    valid_b = jax.lax.dynamic_slice_in_dim(valid_n, start, block)
    row_b = start + jnp.arange(block, dtype=jnp.int32)
    score_Bb = jnp.einsum(
      'BE,bE->Bb',
      query_BE,
      rows_bE.astype(jnp.float32),
      preferred_element_type=jnp.float32,
    )
    keep_b = valid_b & (row_b >= first)
    score_Bb = jnp.where(keep_b[None, :], score_Bb, -jnp.inf)
    score_BK, place_BK = jax.lax.top_k(score_Bb, taken)
    return merge(
      jnp.concatenate([best[0], score_BK], 1),
      jnp.concatenate([best[1], start + place_BK], 1),
      k,
    ), None

  empty = (
    jnp.full((num_queries, k), -jnp.inf, jnp.float32),
    jnp.full((num_queries, k), -1, jnp.int32),
  )
  best, _ = jax.lax.scan(body, empty, jnp.arange(num_blocks, dtype=jnp.int32))
  return best


def merge(
  score_BK: jax.Array, row_BK: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
  """The k best of several results that lie side by side, first ones first."""
  score_BK, place_BK = jax.lax.top_k(score_BK, k)
  return score_BK, jnp.take_along_axis(row_BK, place_BK, 1)
