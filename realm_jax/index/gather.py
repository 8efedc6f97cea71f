"""Rows of a table that is split over all devices, wherever they are."""

import jax
import jax.numpy as jnp
from jax.experimental.compute_on import compute_on

from realm_jax.parallel.mesh import BATCH, ROWS, first_row


def gather(table_N: jax.Array, row_BK: jax.Array) -> jax.Array:
  """`table[row]` for a table split over all devices of the mesh.

  Every device contributes the rows it holds; a reduce-scatter gives each its
  own part of the batch. What travels is B x K rows, never the table.

  A table in the memory of the hosts is read by them, as a part of the same
  program: each device gets its B x K rows from its own host.

  Args:
    table_N: [N, ...] split over `data` and `model`, in the devices' memory or
      their hosts'.
    row_BK: rows to take, B split over `data` and divisible by it; -1 gives
      zeros.

  Returns:
    [B, K, ...] split over `data`; float32 for floating tables, else int32.
  """
  dtype = (
    jnp.float32 if jnp.issubdtype(table_N.dtype, jnp.floating) else jnp.int32
  )

  def shard(table_n: jax.Array, row_bK: jax.Array) -> jax.Array:
    n = table_n.shape[0]
    row_BK = jax.lax.all_gather(row_bK, 'data', axis=0, tiled=True)
    local_BK = row_BK - first_row(n)
    mine_BK = (local_BK >= 0) & (local_BK < n) & (row_BK >= 0)
    found = _take(table_n, jnp.clip(local_BK, 0, n - 1)).astype(dtype)
    mine = mine_BK.reshape(mine_BK.shape + (1,) * (found.ndim - 2))
    found = jnp.where(mine, found, jnp.zeros((), dtype))
    found = jax.lax.psum(found, 'model')
    return jax.lax.psum_scatter(found, 'data', scatter_dimension=0, tiled=True)

  return jax.shard_map(
    shard,
    in_specs=(ROWS, BATCH),
    out_specs=BATCH,
    check_vma=False,
  )(table_N, row_BK)


def _take(table_n: jax.Array, row_BK: jax.Array) -> jax.Array:
  if jax.typeof(table_n).memory_space != jax.memory.Space.Host:
    return table_n[row_BK]
  row_BK = jax.device_put(row_BK, jax.memory.Space.Host)
  with compute_on('device_host'):
    found = table_n[row_BK]
  return jax.device_put(found, jax.memory.Space.Device)
