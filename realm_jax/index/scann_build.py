"""Trees and codes for scann.py, made on the devices, a shard on each."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.config import Config
from realm_jax.parallel.mesh import ROWS

TILE = 128  # rows of a tile
_SAMPLE = 32  # rows that a leaf is trained on
_ITERATIONS = 8
_ASSIGN = 4096  # rows whose leaves are found at a time
_PASSES = 2  # over the dimensions of a code

# A shard's part of a scann.Tree.
Part = dict[str, np.ndarray]


def leaves_of(config: Config, rows: int) -> int:
  """Leaves of a shard."""
  return min(config.index.num_leaves or -(-rows // TILE), rows)


def copies(leaves: int, soar_lambda: float) -> int:
  """Leaves that a row lies in."""
  return 2 if soar_lambda and leaves > 1 else 1


def num_tiles(rows: int, leaves: int, soar_lambda: float = 0.0) -> int:
  """Tiles of a shard, the most that its leaves can need: a static shape."""
  return rows * copies(leaves, soar_lambda) // TILE + min(leaves, rows)


def build_parts(
  rows_GnE: np.ndarray,
  valid_Gn: np.ndarray,
  shard_G: np.ndarray,
  mesh: jax.sharding.Mesh,
  *,
  num_leaves: int,
  threshold: float,
  soar_lambda: float = 0.0,
) -> list[Part]:
  """The trees of some shards, as many as the mesh has devices.

  Args:
    rows_GnE: of each shard.
    valid_Gn: rows that may be found.
    shard_G: their numbers, for the random choices.
    mesh: of this process's devices.
    num_leaves: of a shard.
    threshold: anisotropic_quantization_threshold.
    soar_lambda: 0: a row is in one leaf alone.

  Returns:
    For each shard the arrays of a scann.Tree without its first axis.
  """
  build = functools.partial(
    build_shard,
    num_leaves=num_leaves,
    threshold=threshold,
    soar_lambda=soar_lambda,
  )

  def shards(*parts: jax.Array) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: x[None], build(*(x[0] for x in parts)))

  with jax.set_mesh(mesh):
    found = jax.jit(
      jax.shard_map(
        shards, in_specs=(ROWS,) * 3, out_specs=ROWS, check_vma=False
      )
    )(rows_GnE, valid_Gn, shard_G)
  found = jax.device_get(found)
  return [
    {name: value_G[i] for name, value_G in found.items()}
    for i in range(len(shard_G))
  ]


@functools.partial(
  jax.jit, static_argnames=('num_leaves', 'threshold', 'soar_lambda')
)
def build_shard(
  rows_nE: jax.Array,
  valid_n: jax.Array,
  shard: jax.Array,
  num_leaves: int,
  threshold: float,
  soar_lambda: float = 0.0,
) -> dict[str, jax.Array]:
  """The tree of one shard; see build_parts."""
  rows_nE = rows_nE.astype(jnp.float32)
  n = len(rows_nE)
  num_leaves = min(num_leaves, n)
  key = jax.random.fold_in(jax.random.key(0), shard)
  # Rows that may be found come first, in random order.
  order_n = jnp.argsort(jax.random.uniform(key, (n,)) + ~valid_n)
  sample_mE = rows_nE[order_n[: num_leaves * _SAMPLE]]
  weight_m = valid_n[order_n[: num_leaves * _SAMPLE]].astype(jnp.float32)
  center_TE = train_leaves(sample_mE, weight_m, num_leaves)
  leaf_n = assign(rows_nE, center_TE)
  leaves = [leaf_n]
  if copies(num_leaves, soar_lambda) > 1:
    leaves.append(spill(rows_nE, center_TE, leaf_n, soar_lambda))
  leaf_n = jnp.concatenate([jnp.where(valid_n, x, num_leaves) for x in leaves])
  row_TR = cut_tiles(leaf_n, num_leaves)
  row_TR = jnp.where(row_TR < len(leaf_n), row_TR % n, n)
  member_TRE = rows_nE.at[row_TR].get(mode='fill', fill_value=0)
  there_TR = (row_TR < n)[:, :, None]
  center_TE = jnp.where(there_TR, member_TRE, 0).sum(1) / jnp.maximum(
    there_TR.sum(1), 1
  )
  code_nE, scale_E = quantize(rows_nE, valid_n, threshold)
  code_TRE = code_nE.at[row_TR].get(mode='fill', fill_value=0)
  return {
    'code_GTRE': code_TRE,
    'scale_GE': scale_E,
    'row_GTR': jnp.where(row_TR < n, row_TR, -1),
    'center_GTE': center_TE,
  }


def living(part: Part, alive_n: np.ndarray) -> Part:
  """A shard's tree without rows that died since it was built.

  They would take places among the candidates of a query.

  Args:
    part: of build_parts.
    alive_n: which of the shard's rows may be found.
  """
  if alive_n.all():
    return part
  row_TR = part['row_GTR']
  gone_TR = (row_TR >= 0) & ~alive_n[row_TR]
  tile_t = np.flatnonzero(gone_TR.any(1))
  row_tR = np.where(gone_TR, -1, row_TR)[tile_t]
  # A tile is filled from its front.
  order_tR = np.argsort(row_tR < 0, axis=1, kind='stable')
  part = part | {name: part[name].copy() for name in ('row_GTR', 'code_GTRE')}
  part['row_GTR'][tile_t] = np.take_along_axis(row_tR, order_tR, 1)
  part['code_GTRE'][tile_t] = np.take_along_axis(
    part['code_GTRE'][tile_t], order_tR[:, :, None], 1
  )
  return part


def train_leaves(
  sample_mE: jax.Array, weight_m: jax.Array, num_leaves: int
) -> jax.Array:
  """k-means; the first rows are the first centers."""

  def step(_: int, center_TE: jax.Array) -> jax.Array:
    leaf_m = assign(sample_mE, center_TE)
    sum_TE = jax.ops.segment_sum(
      sample_mE * weight_m[:, None], leaf_m, num_leaves
    )
    count_T = jax.ops.segment_sum(weight_m, leaf_m, num_leaves)
    # A leaf that lost its rows stays where it was.
    return jnp.where(
      count_T[:, None] > 0, sum_TE / jnp.maximum(count_T, 1)[:, None], center_TE
    )

  return jax.lax.fori_loop(0, _ITERATIONS, step, sample_mE[:num_leaves])


def assign(rows_nE: jax.Array, center_TE: jax.Array) -> jax.Array:
  """The nearest center of each row."""
  norm_T = jnp.square(center_TE).sum(1) / 2

  def nearest(rows_bE: jax.Array) -> jax.Array:
    return _argmax(jnp.einsum('bE,TE->bT', rows_bE, center_TE) - norm_T[None])

  return _by_blocks(nearest, rows_nE)


def spill(
  rows_nE: jax.Array, center_TE: jax.Array, leaf_n: jax.Array, weight: float
) -> jax.Array:
  """A second leaf of each row (SOAR: Sun et al. 2023, theorem 3.1).

  A query misses a row where it is like the residual of the row's first leaf.
  The second is near the row, `weight` times as much along that residual.
  """
  norm_T = jnp.square(center_TE).sum(1)

  def second(rows_bE: jax.Array, leaf_b: jax.Array) -> jax.Array:
    residual_bE = rows_bE - center_TE[leaf_b]
    length_b1 = jnp.sqrt(jnp.square(residual_bE).sum(1, keepdims=True))
    unit_bE = residual_bE / jnp.maximum(length_b1, 1e-30)
    near_bT = 2 * jnp.einsum('bE,TE->bT', rows_bE, center_TE) - norm_T[None]
    along_b1 = (rows_bE * unit_bE).sum(1, keepdims=True)
    along_bT = along_b1 - jnp.einsum('bE,TE->bT', unit_bE, center_TE)
    loss_bT = weight * jnp.square(along_bT) - near_bT
    first_bT = leaf_b[:, None] == jnp.arange(len(center_TE))[None]
    return _argmax(jnp.where(first_bT, -jnp.inf, -loss_bT))

  return _by_blocks(second, rows_nE, leaf_n)


def _argmax(score_bT: jax.Array) -> jax.Array:
  """Of two plain reductions: XLA's own is many times slower on CPU."""
  best_bT = score_bT == score_bT.max(1, keepdims=True)
  tiles = score_bT.shape[1]
  place_T = jnp.arange(tiles, dtype=jnp.int32)
  return jnp.where(best_bT, place_T[None], tiles - 1).min(1)


def _by_blocks(
  leaf: Callable[..., jax.Array], *parts_n: jax.Array
) -> jax.Array:
  """Leaves of rows, `_ASSIGN` of them at a time."""
  n = len(parts_n[0])
  block = min(_ASSIGN, n)

  def cut(x_n: jax.Array) -> jax.Array:
    padding = ((0, -n % block),) + ((0, 0),) * (x_n.ndim - 1)
    return jnp.pad(x_n, padding).reshape(-1, block, *x_n.shape[1:])

  found = jax.lax.map(lambda parts: leaf(*parts), tuple(map(cut, parts_n)))
  return found.reshape(-1)[:n]


def cut_tiles(leaf_n: jax.Array, num_leaves: int) -> jax.Array:
  """Rows of one leaf side by side, in tiles of their own.

  Args:
    leaf_n: of each row; num_leaves: in no tile.
    num_leaves: of the shard.

  Returns:
    row_TR: rows of each tile, n where there is none.
  """
  n = len(leaf_n)
  order_n = jnp.argsort(leaf_n, stable=True)
  sorted_n = leaf_n[order_n]
  count_T = jnp.bincount(leaf_n, length=num_leaves)
  tiles_T = -(-count_T // TILE)
  first_T = jnp.cumsum(tiles_T) - tiles_T
  start_T = jnp.cumsum(count_T) - count_T
  in_leaf_n = jnp.arange(n) - start_T.at[sorted_n].get(mode='clip')
  tiles = num_tiles(n, num_leaves)
  place_n = jnp.where(
    sorted_n < num_leaves,
    first_T.at[sorted_n].get(mode='clip') * TILE + in_leaf_n,
    tiles * TILE,
  )
  row_TR = jnp.full(tiles * TILE, n, jnp.int32)
  row_TR = row_TR.at[place_n].set(order_n.astype(jnp.int32), mode='drop')
  return row_TR.reshape(tiles, TILE)


def quantize(
  rows_nE: jax.Array, valid_n: jax.Array, threshold: float
) -> tuple[jax.Array, jax.Array]:
  """Rows to 8 bits a dimension, errors along the row weighing more.

  The loss of Guo et al. 2020, theorem 3.2 and equation 4: an error along the
  row changes the scores of the queries that score it highly. From the nearest
  levels, each dimension in turn takes its second nearest if that is better.

  Args:
    rows_nE: float32.
    valid_n: rows that count for the scale.
    threshold: inner products below this share of the row's norm do not
      matter; 0: plain rounding.

  Returns:
    code_nE int8 and scale_E; code * scale is about the row.
  """
  dim = rows_nE.shape[1]
  largest_E = jnp.where(valid_n[:, None], jnp.abs(rows_nE), 0).max(0)
  scale_E = jnp.maximum(largest_E, 1e-30) / 127
  level_En = (rows_nE / scale_E[None]).T
  code_En = jnp.clip(jnp.round(level_En), -127, 127)
  if not threshold:
    return code_En.T.astype(jnp.int8), scale_E
  weight = (dim - 1) * threshold**2 / (1 - threshold**2)
  norm_n = jnp.sqrt(jnp.square(rows_nE).sum(1))
  unit_En = (rows_nE / jnp.maximum(norm_n, 1e-30)[:, None]).T
  along_n = ((level_En - code_En) * scale_E[:, None] * unit_En).sum(0)

  def better(
    along_n: jax.Array, dimension: tuple[jax.Array, ...]
  ) -> tuple[jax.Array, jax.Array]:
    level_n, code_n, unit_n, scale = dimension
    other_n = code_n + jnp.where(level_n > code_n, 1.0, -1.0)
    error_n = (level_n - code_n) * scale
    moved_n = (level_n - other_n) * scale
    moved_along_n = along_n + (moved_n - error_n) * unit_n
    gain_n = (
      jnp.square(error_n)
      - jnp.square(moved_n)
      + (weight - 1) * (jnp.square(along_n) - jnp.square(moved_along_n))
    )
    take_n = (gain_n > 0) & (jnp.abs(other_n) <= 127)
    return (
      jnp.where(take_n, moved_along_n, along_n),
      jnp.where(take_n, other_n, code_n),
    )

  for _ in range(_PASSES):
    along_n, code_En = jax.lax.scan(
      better, along_n, (level_En, code_En, unit_En, scale_E)
    )
  return code_En.T.astype(jnp.int8), scale_E
