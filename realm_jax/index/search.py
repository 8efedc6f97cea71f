"""Maximum inner product search over rows that are split over all devices.

The index is a value: a pytree that goes into the step and comes out of it.
Each device finds the k best of its own rows, in a way that depends on the kind
of index, then k scores a device and query are exchanged.
"""

import dataclasses

import jax
import jax.numpy as jnp

from realm_jax.index import exact, scann
from realm_jax.parallel.mesh import BATCH, ROWS, first_row

P = jax.sharding.PartitionSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Index:
  """An index version on the devices, rows split over `data` and `model`.

  N is padded to a multiple of the devices; padding and removed documents are
  not `valid`.
  """

  rows_NE: jax.Array | None  # None: the rows are with the hosts
  valid_N: jax.Array  # bool
  tokens_NL: jax.Array  # `[CLS] title [SEP] body [SEP]`, uint16 or int32
  block: int = dataclasses.field(default=4096, metadata={'static': True})
  tree: scann.Tree | None = None  # of the kind scann
  # Where steps write rows (write.py):
  step_N: jax.Array | None = None  # int32, whose parameters made a row
  hits_N: jax.Array | None = None  # int32, retrieved so often since


def search(
  index: Index,
  query_BE: jax.Array,
  k: int,
  exclude_BX: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The k rows of largest inner product with each query (paper 3.3).

  Runs inside jit under `jax.set_mesh`; not differentiable by design: the index
  only selects, scores that count are computed afresh from the rows taken. What
  is with the hosts is searched by scann_host.HostIndex.search, outside of jit.

  Args:
    index: rows to search.
    query_BE: queries, at least one.
    k: rows to return.
    exclude_BX: rows that a query must not return, padded with -1.

  Returns:
    score_BK float32, descending, and row_BK int32; equal scores come in order
    of row. A place that cannot be filled has score -inf and row -1.

  Raises:
    ValueError: k below 1, no query, no row, or another E than the index has.
  """
  if k < 1:
    raise ValueError(f'search: k is {k}, must be at least 1')
  if exclude_BX is None:
    return _search(index, query_BE, k)
  score_BK, row_BK = _search(index, query_BE, k + exclude_BX.shape[1])
  score_BK, row_BK, _ = drop_excluded(score_BK, row_BK, exclude_BX, k)
  return score_BK, row_BK


def find(
  index: Index, batch: dict[str, jax.Array], query_BE: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
  """What the hosts have found for a batch, else what `search` finds.

  Args:
    index: to search.
    batch: with found_score_BK and found_row_BK, or without.
    query_BE: of the batch.
    k: rows to return.
  """
  if 'found_row_BK' in batch:
    return batch['found_score_BK'], batch['found_row_BK']
  return search(index, query_BE, k)


def drop_excluded(
  score_BK: jax.Array, row_BK: jax.Array, exclude_BX: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Takes the excluded rows out of a longer result.

  A result of k + X rows keeps at least k of them: no query loses a place.

  Args:
    score_BK: descending scores of at least k + X rows.
    row_BK: their rows.
    exclude_BX: rows to take out, padded with -1.
    k: rows to keep.

  Returns:
    score_BK and row_BK of the k best that are left, and hit_B: whether any of
    the first k was excluded.
  """
  hit_BK = (row_BK[:, :, None] == exclude_BX[:, None, :]).any(2) & (row_BK >= 0)
  score_BK = jnp.where(hit_BK, -jnp.inf, score_BK)
  best_BK, place_BK = jax.lax.top_k(score_BK, k)
  row_BK = jnp.take_along_axis(row_BK, place_BK, 1)
  return (
    best_BK,
    jnp.where(best_BK == -jnp.inf, -1, row_BK),
    hit_BK[:, :k].any(1),
  )


def _search(
  index: Index, query_BE: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
  if index.rows_NE is None:
    raise ValueError('search: the rows of this index are with the hosts')
  if 0 in (len(query_BE), len(index.rows_NE)):
    raise ValueError(
      f'search: {len(query_BE)} queries among {len(index.rows_NE)} rows; there '
      'must be some of both'
    )
  if query_BE.shape[1] != index.rows_NE.shape[1]:
    raise ValueError(
      f'search: queries have {query_BE.shape[1]} dimensions, the index has '
      f'{index.rows_NE.shape[1]}'
    )
  mesh = jax.sharding.get_abstract_mesh()
  data, model = mesh.shape['data'], mesh.shape['model']
  num_queries = query_BE.shape[0]
  # The exchange gives each device along `data` its share of the queries.
  padding = -num_queries % data
  if query_BE.dtype != jnp.bfloat16:
    query_BE = query_BE.astype(jnp.float32)
  query_BE = jnp.pad(jax.lax.stop_gradient(query_BE), ((0, padding), (0, 0)))

  def shard(
    tree: scann.Tree | None,
    rows_nE: jax.Array,
    valid_n: jax.Array,
    query_BE: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    n = rows_nE.shape[0]
    if tree is None:
      score_BK, row_BK = exact.top_k(rows_nE, valid_n, query_BE, k, index.block)
    else:
      score_BK, row_BK = scann.top_k(tree, rows_nE, valid_n, query_BE, k)
    row_BK = jnp.where(score_BK == -jnp.inf, -1, row_BK + first_row(n))
    # Merge over `model`, then each `data` peer merges its own queries. Peers
    # come in order of their rows, so equal scores stay in order of row.
    if model > 1:
      score_BK, row_BK = exact.merge(
        jax.lax.all_gather(score_BK, 'model', axis=1, tiled=True),
        jax.lax.all_gather(row_BK, 'model', axis=1, tiled=True),
        k,
      )
    if data > 1:
      score_BK, row_BK = exact.merge(
        *(_exchange(x, data) for x in (score_BK, row_BK)), k
      )
    return score_BK, row_BK

  score_BK, row_BK = jax.shard_map(
    shard,
    in_specs=(ROWS, ROWS, ROWS, P()),
    out_specs=BATCH,
    check_vma=False,  # peers along `model` hold equal results
  )(index.tree, index.rows_NE, index.valid_N, query_BE)
  return score_BK[:num_queries], row_BK[:num_queries]


def _exchange(x_BK: jax.Array, data: int) -> jax.Array:
  """[B, k] on each peer to [B / data, data * k]: all results, own queries."""
  num_queries, k = x_BK.shape
  x = x_BK.reshape(data, num_queries // data, k)
  x = jax.lax.all_to_all(x, 'data', split_axis=0, concat_axis=0)
  return x.transpose(1, 0, 2).reshape(num_queries // data, data * k)
