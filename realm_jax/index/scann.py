"""ScaNN's search on the devices: a tree of tiles, int8 codes, rescoring.

Guo et al. 2020 (anisotropic quantization), with a partition tree as in Sun et
al. 2023. A shard's rows lie in tiles of rows that are near each other. A query
visits the tiles whose centers it likes best; codes of 8 bits a dimension pick
`reorder` rows of them, which are scored again from the rows themselves. With
`soar_lambda` every row lies in two leaves. With one leaf there is no tree. The
library's 4-bit codes have no place here: they are looked up, not multiplied.

The queries of a batch that visit one tile are scored together: every tile is
read about once a batch, however many of them visit it, and the work is matrix
products. Letters of this file: G shards, T tiles of a shard, R rows of a tile,
P tiles that a query visits, U groups of queries, Q queries of a group.
"""

import dataclasses

import jax
import jax.numpy as jnp

from realm_jax.index import exact

_GROUP = 8  # queries that are scored together
_CHUNK = 64  # groups of them, at a time
_BUCKET = 16  # rows of a tile of which the best stands for all, at first


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tree:
  """What is searched before the rows: shards, whole on their devices.

  Shards are counted by the config, not by the devices: the results are the
  same on any number of them.

  Attributes:
    code_GTRE: int8; times `scale_GE` about the row.
    scale_GE: float32.
    row_GTR: of each code, counted from the shard's first row; -1: none.
    center_GTE: mean of a tile's rows, float32.
    leaves: tiles of each shard that a query visits (num_leaves_to_search).
    reorder: rows of each shard that are scored exactly
      (reordering_num_neighbors).
    copies: leaves that a row lies in.
  """

  code_GTRE: jax.Array
  scale_GE: jax.Array
  row_GTR: jax.Array
  center_GTE: jax.Array
  leaves: int = dataclasses.field(metadata={'static': True})
  reorder: int = dataclasses.field(metadata={'static': True})
  copies: int = dataclasses.field(default=1, metadata={'static': True})


def top_k(
  tree: Tree,
  rows_nE: jax.Array,
  valid_n: jax.Array,
  query_BE: jax.Array,
  k: int,
) -> tuple[jax.Array, jax.Array]:
  """About the k best of one device's rows; runs under `jax.shard_map`.

  Args:
    tree: of the device's shards.
    rows_nE: the rows of these shards, in their order.
    valid_n: rows that may be returned.
    query_BE: float32.
    k: may be more than n.

  Returns:
    As exact.top_k; the scores are those of `rows_nE`. Places stay empty where
    the tiles that a query visits hold fewer rows.
  """
  shards, tiles, tile_rows, _ = tree.code_GTRE.shape
  # A long result needs enough tiles to be filled from: twice those that hold
  # it in the mean, a row being in `copies` of them.
  size = len(rows_nE) // shards
  leaves = min(max(tree.leaves, 2 * -(-k * tiles // size)), tiles)
  reorder = min(max(tree.reorder, k * tree.copies), leaves * tile_rows)

  def shard(g: jax.Array) -> tuple[jax.Array, jax.Array]:
    row_BK = _candidates(tree, g, query_BE, leaves, reorder)
    row_BK = jnp.where(row_BK < 0, -1, row_BK + g * size)
    return rescore(rows_nE, valid_n, query_BE, row_BK, k)

  # One after the other, by one program: how many there are here is no matter.
  # They are not what is mapped over: each would be copied out of the table.
  score_GBK, row_GBK = jax.lax.map(shard, jnp.arange(shards, dtype=jnp.int32))
  score_BK, row_BK = (
    x.transpose(1, 0, 2).reshape(len(query_BE), -1)
    for x in (score_GBK, row_GBK)
  )
  return exact.merge(score_BK, row_BK, k)


def rescore(
  rows_nE: jax.Array,
  valid_n: jax.Array,
  query_BE: jax.Array,
  row_BK: jax.Array,
  k: int,
) -> tuple[jax.Array, jax.Array]:
  """The k best of some candidates by their rows; -1 is no candidate."""
  # In order of row, so that equal scores come out so.
  row_BK = jnp.sort(jnp.where(row_BK < 0, len(rows_nE), row_BK), 1)
  # One that lies in two leaves may have been found in both.
  twice_BK = jnp.pad(row_BK[:, 1:] == row_BK[:, :-1], ((0, 0), (1, 0)))
  row_BK = jnp.where(twice_BK, len(rows_nE), row_BK)
  row_BKE = rows_nE.at[row_BK].get(mode='fill', fill_value=0)
  score_BK = jnp.einsum(
    'BE,BKE->BK',
    query_BE,
    row_BKE.astype(jnp.float32),
    preferred_element_type=jnp.float32,
    precision=jax.lax.Precision.HIGHEST,
  )
  valid_BK = valid_n.at[row_BK].get(mode='fill', fill_value=False)
  score_BK = jnp.where(valid_BK, score_BK, -jnp.inf)
  missing = max(k - row_BK.shape[1], 0)
  score_BK = jnp.pad(score_BK, ((0, 0), (0, missing)), constant_values=-jnp.inf)
  row_BK = jnp.pad(row_BK, ((0, 0), (0, missing)))
  return exact.merge(score_BK, row_BK, k)


def _candidates(
  tree: Tree, g: jax.Array, query_BE: jax.Array, leaves: int, count: int
) -> jax.Array:
  """Rows of shard g with the best codes among the tiles that are visited."""
  tiles, tile_rows = tree.row_GTR.shape[1:]
  batch = len(query_BE)
  center_BT = jnp.einsum(
    'BE,TE->BT',
    query_BE,
    tree.center_GTE[g],
    preferred_element_type=jnp.float32,
  )
  # A tile is filled from its front: without a first row it has none.
  center_BT = jnp.where((tree.row_GTR[g, :, 0] >= 0)[None], center_BT, -jnp.inf)
  tile_BP = _best_places(center_BT, leaves)
  score_UQR, best_UQb, place_BP = _score_tiles(
    tree, g, query_BE * tree.scale_GE[g][None], tile_BP
  )
  tile_BP = tile_BP + g * tiles
  # The best rows lie in the best buckets, one of them in each at the worst.
  buckets = best_UQb.shape[2]
  width = tile_rows // buckets
  best_Bb = best_UQb.reshape(-1, buckets)[place_BP].reshape(batch, -1)
  _, bucket_BK = jax.lax.top_k(best_Bb, min(count, leaves * buckets))
  visit_BK, bucket_BK = bucket_BK // buckets, bucket_BK % buckets
  pair_BK = jnp.take_along_axis(place_BP, visit_BK, 1)
  score_BKr = score_UQR.reshape(-1, width)[pair_BK * buckets + bucket_BK]
  tile_BK = jnp.take_along_axis(tile_BP, visit_BK, 1)
  row_BKr = tree.row_GTR.reshape(-1, width)[tile_BK * buckets + bucket_BK]
  score_BK, row_BK = exact.merge(
    score_BKr.reshape(batch, -1), row_BKr.reshape(batch, -1), count
  )
  return jnp.where(score_BK == -jnp.inf, -1, row_BK)


def _best_places(score_BN: jax.Array, k: int) -> jax.Array:
  """Where the k largest are: those of buckets first, then of their members."""
  batch, n = score_BN.shape
  if n <= 2 * k * _BUCKET:
    return jax.lax.top_k(score_BN, k)[1]
  score_BN = jnp.pad(
    score_BN, ((0, 0), (0, -n % _BUCKET)), constant_values=-jnp.inf
  )
  score_Bnb = score_BN.reshape(batch, -1, _BUCKET)
  _, bucket_BK = jax.lax.top_k(score_Bnb.max(-1), k)
  member_BKb = jnp.take_along_axis(score_Bnb, bucket_BK[:, :, None], 1)
  _, place_BK = jax.lax.top_k(member_BKb.reshape(batch, -1), k)
  bucket_BK = jnp.take_along_axis(bucket_BK, place_BK // _BUCKET, 1)
  # Beyond the end only where fewer than k are finite; the last is not, then.
  return jnp.minimum(bucket_BK * _BUCKET + place_BK % _BUCKET, n - 1)


def _score_tiles(
  tree: Tree, g: jax.Array, query_BE: jax.Array, tile_BP: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Scores queries with the codes of the tiles that they visit, tile by tile.

  Returns:
    score_UQR: of a group's queries with the rows of its tile, -inf: no row.
    best_UQb: the best of each bucket of rows.
    place_BP: where the scores of each visit are, counted over U and Q.
  """
  tiles, tile_rows = tree.row_GTR.shape[1:]
  code_TRE = tree.code_GTRE.reshape(-1, *tree.code_GTRE.shape[2:])
  row_TR = tree.row_GTR.reshape(-1, tile_rows)
  batch, leaves = tile_BP.shape
  visits = batch * leaves
  # Visits in order of tile, cut into groups of one tile each.
  order_v = jnp.argsort(tile_BP.reshape(-1), stable=True)
  tile_v = tile_BP.reshape(-1)[order_v]
  number_v = jnp.arange(visits)
  starts_v = jnp.concatenate([jnp.ones(1, bool), tile_v[1:] != tile_v[:-1]])
  rank_v = number_v - jax.lax.cummax(jnp.where(starts_v, number_v, 0))
  slot_v = rank_v % _GROUP
  group_v = jnp.cumsum(slot_v == 0) - 1
  groups = min(visits, visits // _GROUP + tiles)
  groups = -(-groups // _CHUNK) * _CHUNK
  tile_U = jnp.zeros(groups, jnp.int32).at[group_v].set(tile_v)
  place_v = (group_v * _GROUP + slot_v).astype(jnp.int32)
  query_UQ = (
    jnp.zeros(groups * _GROUP, jnp.int32).at[place_v].set(order_v // leaves)
  ).reshape(groups, _GROUP)
  place_BP = (
    jnp.zeros(visits, jnp.int32).at[order_v].set(place_v).reshape(batch, leaves)
  )
  buckets = -(-tile_rows // _BUCKET)

  def body(i: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    first = i * _CHUNK
    tile_u = jax.lax.dynamic_slice_in_dim(tile_U, first, _CHUNK) + g * tiles
    query_uQ = jax.lax.dynamic_slice_in_dim(query_UQ, first, _CHUNK)
    # 8 bits are exact in bfloat16 as in float32; the rows that are picked are
    # scored again.
    score_uQR = jnp.einsum(
      'uQE,uRE->uQR',
      query_BE[query_uQ],
      code_TRE[tile_u].astype(jnp.float32),
      preferred_element_type=jnp.float32,
    )
    score_uQR = jnp.where((row_TR[tile_u] >= 0)[:, None], score_uQR, -jnp.inf)
    best_uQb = score_uQR.reshape(_CHUNK, _GROUP, buckets, -1).max(-1)
    return tuple(
      jax.lax.dynamic_update_slice_in_dim(all_U, new_u, first, 0)
      for all_U, new_u in zip(found, (score_uQR, best_uQb), strict=True)
    )

  used = (group_v[-1] + _CHUNK) // _CHUNK
  score_UQR, best_UQb = jax.lax.fori_loop(
    0,
    used,
    body,
    (
      jnp.zeros((groups, _GROUP, tile_rows), jnp.float32),
      jnp.zeros((groups, _GROUP, buckets), jnp.float32),
    ),
  )
  return score_UQR, best_UQb, place_BP
