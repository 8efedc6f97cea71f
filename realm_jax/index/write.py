"""Writing rows of an index that is split over all devices."""

import dataclasses

import jax
import jax.numpy as jnp

from realm_jax.index.search import Index
from realm_jax.parallel.mesh import BATCH, ROWS


def write_rows(index: Index, row_BK: jax.Array, fresh_BKE: jax.Array) -> Index:
  """The index with some rows replaced.

  The rows and their embeddings go to all devices; each writes those it holds.
  With the index donated to the program it happens in place. Runs inside jit
  under `jax.set_mesh`.

  Args:
    index: before.
    row_BK: rows to replace, B split over `data` and divisible by it; -1: none.
      Of a row that comes twice the first one counts, on any number of devices.
    fresh_BKE: their embeddings; rounded to the index's dtype.

  Returns:
    The index after.
  """
  model = jax.sharding.get_abstract_mesh().shape['model']

  def shard(
    rows_nE: jax.Array, row_bK: jax.Array, fresh_bKE: jax.Array
  ) -> jax.Array:
    n, size = rows_nE.shape
    row_R, fresh_RE = (
      jax.lax.all_gather(x, 'data', axis=0, tiled=True)
      for x in (row_bK.reshape(-1), fresh_bKE.reshape(-1, size))
    )
    order_R = jnp.argsort(row_R, stable=True)
    row_R = row_R[order_R]
    first_R = jnp.concatenate([jnp.ones(1, bool), row_R[1:] != row_R[:-1]])
    place = jax.lax.axis_index('data') * model + jax.lax.axis_index('model')
    local_R = row_R - place * n
    mine_R = first_R & (row_R >= 0) & (local_R >= 0) & (local_R < n)
    return rows_nE.at[jnp.where(mine_R, local_R, n)].set(
      fresh_RE[order_R].astype(rows_nE.dtype), mode='drop'
    )

  rows_NE = jax.shard_map(
    shard,
    in_specs=(ROWS, BATCH, BATCH),
    out_specs=ROWS,
    check_vma=False,  # peers along `model` hold equal rows to write
  )(index.rows_NE, row_BK, jax.lax.stop_gradient(fresh_BKE))
  return dataclasses.replace(index, rows_NE=rows_NE)
