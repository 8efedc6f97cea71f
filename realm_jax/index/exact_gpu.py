"""The first stage of exact search on NVIDIA GPUs: a Pallas (Triton) kernel.

XLA has no product that is reduced before it is written out, and its top-k on a
GPU sorts all scores. Here a program holds some queries, walks over tiles of
rows and writes only the largest score of each group of rows: scores stay on the
chip.

No GPU was at hand. The kernel is interpreted on CPUs by the tests and lowered
for `cuda` in real sizes; it was not compiled by a GPU's compiler, nor timed.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

GROUP = 128
_TILE = 128  # rows that are multiplied at a time
_QUERIES = 128  # of a program
_DEPTH = 128  # dimensions that are multiplied at a time
_LEAST = 16  # a side of what tensor cores multiply
_PROGRAMS = 1024  # that the rows are split over: some for each processor
_TOGETHER = 64  # groups that top-k first sees as one


def best_groups(
  rows_nE: jax.Array,
  valid_n: jax.Array,
  query_BE: jax.Array,
  k: int,
  group: int,
  interpret: bool = False,
) -> jax.Array:
  """The k groups with the largest scores.

  Args:
    rows_nE: float32 or bfloat16.
    valid_n: rows that may be returned.
    query_BE: float32 or bfloat16; `fits(n, E)`.
    k: groups to find.
    group: rows to a group, a power of two, at most GROUP.
    interpret: on a CPU.

  Returns:
    [B, k] in any order; -1 where there is no group left.
  """
  num_queries = query_BE.shape[0]
  max_GB = _group_maxima(rows_nE, valid_n, query_BE, group, interpret)
  max_GB = max_GB[:, :num_queries]
  groups = max_GB.shape[0]
  more = max(k - groups, -groups % _TOGETHER)
  max_GB = jnp.pad(max_GB, ((0, more), (0, 0)), constant_values=-jnp.inf)
  if groups <= k * _TOGETHER:
    max_BK, group_BK = jax.lax.top_k(max_GB.T, k)
    return jnp.where(max_BK == -jnp.inf, -1, group_BK)
  # Again the k best of groups, now of groups, hold the k best of all.
  max_gtB = max_GB.reshape(-1, _TOGETHER, num_queries)
  _, best_BK = jax.lax.top_k(max_gtB.max(1).T, k)
  best_BK = jnp.sort(best_BK, 1)
  max_BKt = max_gtB[best_BK, :, jnp.arange(num_queries)[:, None]]
  max_BK, place_BK = jax.lax.top_k(max_BKt.reshape(num_queries, -1), k)
  group_BK = (
    jnp.take_along_axis(best_BK, place_BK // _TOGETHER, 1) * _TOGETHER
    + place_BK % _TOGETHER
  )
  return jnp.where(max_BK == -jnp.inf, -1, group_BK)


def fits(n: int, depth: int) -> bool:
  """Whether the kernel takes n rows of so many dimensions."""
  # Places in less than 2**32 numbers are 32 bits wide in Pallas's lowering,
  # and signed to Triton: what a GPU would read between was not seen.
  return _step(depth) >= _LEAST and not 2**31 <= n * depth <= 2**32


def bfloat16_parts(query_BE: jax.Array) -> list[jax.Array]:
  """Bfloat16 arrays whose sum is the queries: products with each add up."""
  if query_BE.dtype == jnp.bfloat16:
    return [query_BE]
  parts = []
  for _ in range(3):  # 24 bits by 8
    # A conversion there and back XLA may leave out; this it keeps.
    part_BE = jax.lax.reduce_precision(query_BE, 8, 7)
    parts.append(part_BE.astype(jnp.bfloat16))
    query_BE = query_BE - part_BE
  return parts


def _group_maxima(
  rows_nE: jax.Array,
  valid_n: jax.Array,
  query_BE: jax.Array,
  group: int,
  interpret: bool,
) -> jax.Array:
  """The largest score of each group, [G, B], G and B padded."""
  n, depth = rows_nE.shape
  if rows_nE.dtype == jnp.bfloat16:
    query_PBE = jnp.stack(bfloat16_parts(query_BE))
    held = _QUERIES
  else:
    query_PBE = query_BE.astype(jnp.float32)[None]
    held = _QUERIES // 4  # float32 takes twice the room and no tensor cores
  num_queries = query_BE.shape[0]
  held = min(held, max(pl.next_power_of_2(num_queries), _LEAST))
  query_PBE = jnp.pad(query_PBE, ((0, 0), (0, -num_queries % held), (0, 0)))
  tiles = pl.cdiv(n, _TILE)
  programs = min(_PROGRAMS, tiles)
  walked = pl.cdiv(tiles, programs)
  blocks = query_PBE.shape[1] // held
  return pl.pallas_call(
    functools.partial(
      _kernel, n=n, group=group, walked=walked, step=_step(depth)
    ),
    out_shape=jax.ShapeDtypeStruct(
      (programs * walked * (_TILE // group), query_PBE.shape[1]), jnp.float32
    ),
    # Programs that share rows start side by side: one of them reads memory.
    grid=(blocks, programs),
    in_specs=[
      pl.BlockSpec(rows_nE.shape, lambda j, i: (0, 0)),
      pl.BlockSpec(valid_n.shape, lambda j, i: (0,)),
      pl.BlockSpec(
        (query_PBE.shape[0], held, query_PBE.shape[2]), lambda j, i: (0, j, 0)
      ),
    ],
    out_specs=pl.BlockSpec(
      (walked * (_TILE // group), held), lambda j, i: (i, j)
    ),
    compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
    interpret=interpret,
    name='group_maxima',
  )(rows_nE, valid_n, query_PBE)


def _step(depth: int) -> int:
  return math.gcd(depth, _DEPTH)


def _kernel(rows_ref, valid_ref, query_ref, max_ref, *, n, group, walked, step):
  first_tile = pl.program_id(1) * walked
  parts, held, depth = query_ref.shape

  def tile(i, _):
    start = (first_tile + i) * _TILE
    inside_t = start + jnp.arange(_TILE) < n
    score_Bt = jnp.zeros((held, _TILE), jnp.float32)
    for first in range(0, depth, step):
      columns = pl.ds(first, step)
      rows_tE = triton.load(
        rows_ref.at[pl.ds(start, _TILE), columns],
        mask=jnp.broadcast_to(inside_t[:, None], (_TILE, step)),
        other=0.0,
      )
      for part in range(parts):
        score_Bt += jax.lax.dot_general(
          query_ref[part, :, columns],
          rows_tE,
          (((1,), (1,)), ((), ())),
          precision=jax.lax.Precision.HIGHEST,
          preferred_element_type=jnp.float32,
        )
    valid_t = triton.load(
      valid_ref.at[pl.ds(start, _TILE)], mask=inside_t, other=False
    )
    score_Bt = jnp.where(valid_t[None, :], score_Bt, -jnp.inf)
    max_BG = score_Bt.reshape(held, _TILE // group, group).max(2)
    groups = pl.ds(i * (_TILE // group), _TILE // group)
    max_ref[groups, :] = max_BG.T
    return 0

  jax.lax.fori_loop(0, walked, tile, 0)
