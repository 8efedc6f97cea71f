"""Exact search of one device's rows.

In two stages, exact by construction. Neighbouring rows form groups. The largest
score of each group is found, and the k groups where it is largest keep all of
the k best rows: each of these groups has a row that comes before any row of the
other groups. The rows of the k groups are then scored again, one by one, so
that equal rows get equal scores wherever they are. Only the first stage reads
all rows; on NVIDIA GPUs it is the kernel of `exact_gpu.py`.

Scores are never a [B, n] matrix.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from realm_jax.index import exact_gpu

Product = Callable[[jax.Array, jax.Array], jax.Array]
Best = tuple[jax.Array, jax.Array]  # scores and groups, [B, k]

_GROUP = 32
_LEAST_ROWS = 32  # of a product
# Scored again is at most this share of the rows, or groups get smaller.
_RESCORED_SHARE = 1 / 8
_RESCORED_AT_A_TIME = 2**20  # numbers in rows
_SCORES_AT_A_TIME = 2**22


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
    query_BE: float32, or bfloat16: a third of the work on TPUs and GPUs where
      the rows are bfloat16 too.
    k: may be more than n.
    block: rows that are scored at a time; a GPU has its own.

  Returns:
    score_BK float32, descending, and place_BK int32, counted from the device's
    first row; equal scores in order of row. What cannot be filled is -inf and
    any place.
  """
  n = rows_nE.shape[0]

  def two_stages(best_groups: Callable[..., jax.Array], largest: int) -> Any:
    group = group_size(n, k, largest)

    def run(*rows_and_queries: jax.Array) -> tuple[jax.Array, jax.Array]:
      group_BK = best_groups(*rows_and_queries, k, group)
      return rescore(*rows_and_queries, group_BK, k, group)

    return run

  def blocks(product: Product) -> Callable[..., jax.Array]:
    return functools.partial(best_groups, block=block, product=product)

  default = two_stages(blocks(float32_product), _GROUP)
  cuda = default
  if exact_gpu.fits(*rows_nE.shape):
    cuda = two_stages(exact_gpu.best_groups, exact_gpu.GROUP)
  tpu = two_stages(blocks(bfloat16_products), _GROUP)
  # Decided in lowering: a host of CPUs may compile for TPUs.
  return jax.lax.platform_dependent(
    rows_nE, valid_n, query_BE, cuda=cuda, tpu=tpu, default=default
  )


def group_size(n: int, k: int, largest: int) -> int:
  """Rows to a group: a power of two, so few that k groups are a small part."""
  group = largest
  while group > 1 and k * group > n * _RESCORED_SHARE:
    group //= 2
  return group


def best_groups(
  rows_nE: jax.Array,
  valid_n: jax.Array,
  query_BE: jax.Array,
  k: int,
  group: int,
  block: int,
  product: Product,
) -> jax.Array:
  """The k groups with the largest scores, [B, k] in any order; -1: none.

  A block of rows is scored at a time, with a running top-k of its groups.
  """
  n = rows_nE.shape[0]
  num_queries = query_BE.shape[0]
  # A large k costs less when many groups are merged at a time.
  block = max(block, min(k * group, _SCORES_AT_A_TIME // num_queries))
  block = max(min(block, n) // group, 1) * group

  def add(best: Best, first: jax.Array | int, size: int) -> Best:
    rows_bE = jax.lax.dynamic_slice_in_dim(_pin(rows_nE, first), first, size)
    valid_b = jax.lax.dynamic_slice_in_dim(valid_n, first, size)
    # A product with one row or a few rounds otherwise than one with many.
    missing = -size % max(group, _LEAST_ROWS)
    rows_bE = jnp.pad(rows_bE, ((0, missing), (0, 0)))
    valid_b = jnp.pad(valid_b, (0, missing))
    # Queries last: the maximum over rows is one of vectors.
    score_bB = jnp.where(valid_b[:, None], product(rows_bE, query_BE), -jnp.inf)
    max_BG = score_bB.reshape(-1, group, num_queries).max(1).T
    max_BG = max_BG[:, : -(-size // group)]
    group_G = first // group + jnp.arange(max_BG.shape[1], dtype=jnp.int32)
    return merge(
      jnp.concatenate([best[0], max_BG], 1),
      jnp.concatenate([best[1], jnp.broadcast_to(group_G, max_BG.shape)], 1),
      k,
    )

  best = (
    jnp.full((num_queries, k), -jnp.inf, jnp.float32),
    jnp.full((num_queries, k), -1, jnp.int32),
  )
  whole = n // block
  best, _ = jax.lax.scan(
    lambda best, i: (add(best, i * block, block), None),
    best,
    jnp.arange(whole, dtype=jnp.int32),
  )
  if n % block:
    best = add(best, whole * block, n % block)
  return best[1]


def rescore(
  rows_nE: jax.Array,
  valid_n: jax.Array,
  query_BE: jax.Array,
  group_BK: jax.Array,
  k: int,
  group: int,
) -> tuple[jax.Array, jax.Array]:
  """The k best rows of groups; see top_k."""
  n = rows_nE.shape[0]
  # In order of row, as top-k keeps it among equals.
  group_BK = jnp.sort(group_BK, 1)

  def score(
    rows_nE: jax.Array, query_E: jax.Array, group_K: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    # A slice has one size: the last group's reaches back over rows of others.
    start_K = jnp.clip(group_K * group, 0, n - group)
    place_KG = start_K[:, None] + jnp.arange(group, dtype=jnp.int32)[None]
    rows_KGE = jax.vmap(
      lambda start: jax.lax.dynamic_slice_in_dim(rows_nE, start, group)
    )(start_K)
    score_KG = (rows_KGE.astype(jnp.float32) * query_E[None, None]).sum(2)
    mine_KG = (place_KG >= group_K[:, None] * group) & (group_K >= 0)[:, None]
    score_KG = jnp.where(mine_KG & valid_n[place_KG], score_KG, -jnp.inf)
    score_K, best_K = jax.lax.top_k(score_KG.reshape(-1), k)
    return score_K, place_KG.reshape(-1)[best_K]

  num_queries = query_BE.shape[0]
  size = k * group * rows_nE.shape[1]
  together = min(max(_RESCORED_AT_A_TIME // size, 1), num_queries)

  def some(x_BX: jax.Array) -> jax.Array:
    x_BX = jnp.pad(x_BX, ((0, -num_queries % together), (0, 0)))
    return x_BX.reshape(-1, together, x_BX.shape[1])

  score_BK, place_BK = jax.lax.map(
    lambda pair: jax.vmap(score, (None, 0, 0))(_pin(rows_nE, pair[1]), *pair),
    (some(query_BE.astype(jnp.float32)), some(group_BK)),
  )
  return tuple(
    x_BK.reshape(-1, k)[:num_queries] for x_BK in (score_BK, place_BK)
  )


def _pin(rows_nE: jax.Array, varying: Any) -> jax.Array:
  """Keeps what is done to some of the rows in a loop inside the loop.

  XLA's CPU backend takes a conversion of bfloat16 rows out of it, and holds a
  float32 copy of them all.
  """
  return jax.lax.optimization_barrier((rows_nE, varying))[0]


def merge(
  score_BK: jax.Array, row_BK: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
  """The k best of several results that lie side by side, first ones first."""
  score_BK, place_BK = jax.lax.top_k(score_BK, k)
  return score_BK, jnp.take_along_axis(row_BK, place_BK, 1)


def float32_product(rows_bE: jax.Array, query_BE: jax.Array) -> jax.Array:
  """score_bB, whatever the rows are."""
  return jnp.einsum(
    'bE,BE->bB',
    rows_bE.astype(jnp.float32),
    query_BE.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )


def bfloat16_products(rows_bE: jax.Array, query_BE: jax.Array) -> jax.Array:
  """The same from products of bfloat16, what TPUs multiply: three at most.

  Six is what XLA makes of a float32 product that it may not round.
  """
  if rows_bE.dtype != jnp.bfloat16:
    return float32_product(rows_bE, query_BE)
  score_bB = jnp.zeros((), jnp.float32)
  for part_BE in exact_gpu.bfloat16_parts(query_BE):
    score_bB += jnp.einsum(
      'bE,BE->bB', rows_bE, part_BE, preferred_element_type=jnp.float32
    )
  return score_bB
