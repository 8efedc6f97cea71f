"""Writing rows of an index that is split over all devices.

An index that is written into knows of every row which step's parameters made
it, and may count how often a row was retrieved since. Both are split over the
devices as the rows are. `write_rows`, `count_hits` and `most_hit` run inside
jit under `jax.set_mesh`; with the index donated they work in place.

Half of what training changes of an embedding is the same for all of them (0.48
of the mean square after 15 steps of experiments/wiki_tiny.py, 0.50 after 30),
and queries move with it: where a tenth of the rows is fresh, 83% of what is
found is among them, and of what fresh embeddings find 25% is left, 59% where no
row is fresh. Rows that are renewed before others are therefore written `level`:
without what they have moved by in the mean, so that the mean of the index
stays. Of the same rows so written 58% is found. A query's scores of all rows
differ from true ones by one number then; the step uses none of them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.index.search import Index
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel.mesh import BATCH, ROWS

P = jax.sharding.PartitionSpec


def writable(
  index: Index, mesh: jax.sharding.Mesh, step: int, count_hits: bool
) -> Index:
  """The index as a step can write into it.

  Args:
    index: a version, of
    mesh: the run's,
    step: whose parameters made its rows.
    count_hits: count how often a row is retrieved.
  """
  assert index.rows_NE is not None
  total = len(index.rows_NE)

  def put(value: int) -> jax.Array:
    def read(start: int, stop: int) -> np.ndarray:
      return np.full(stop - start, value, np.int32)

    return mesh_lib.put_rows(read, total, (), np.int32, mesh, total)

  return dataclasses.replace(
    index, step_N=put(step), hits_N=put(0) if count_hits else None
  )


def state(index: Index) -> dict[str, jax.Array]:
  """What steps write into, by its name in Index; a checkpoint must hold it."""
  names = ('rows_NE', 'step_N', 'hits_N')
  arrays = {name: getattr(index, name) for name in names}
  return {name: array for name, array in arrays.items() if array is not None}


def write_rows(
  index: Index,
  row_BK: jax.Array,
  fresh_BKE: jax.Array,
  step: jax.Array,
  level: bool = False,
) -> Index:
  """The index with some rows replaced.

  The rows and their embeddings go to all devices; each writes those it holds.

  Args:
    index: before; writable.
    row_BK: rows to replace, B split over `data` and divisible by it; -1: none.
      Of a row that comes twice the first one counts, on any number of devices.
    fresh_BKE: their embeddings; rounded to the index's dtype.
    step: whose parameters made them.
    level: static; leave the mean of the rows as it is.

  Returns:
    The index after.
  """

  def shard(
    arrays: dict[str, jax.Array],
    row_bK: jax.Array,
    fresh_bKE: jax.Array,
    step: jax.Array,
  ) -> dict[str, jax.Array]:
    rows_nE = arrays['rows_NE']
    n, size = rows_nE.shape
    row_R, fresh_RE = (
      jax.lax.all_gather(x, 'data', axis=0, tiled=True)
      for x in (row_bK.reshape(-1), fresh_bKE.reshape(-1, size))
    )
    order_R = jnp.argsort(row_R, stable=True)
    row_R = row_R[order_R]
    first_R = jnp.concatenate([jnp.ones(1, bool), row_R[1:] != row_R[:-1]])
    place_R = _places(jnp.where(first_R, row_R, -1), n)
    fresh_RE = fresh_RE[order_R]
    if level:
      old_RE = rows_nE[jnp.minimum(place_R, n - 1)].astype(jnp.float32)
      fresh_RE = fresh_RE - _mean(fresh_RE - old_RE, place_R < n)[None]
    values = {
      'rows_NE': fresh_RE.astype(rows_nE.dtype),
      'step_N': step,
      'hits_N': jnp.int32(0),
    }
    return {
      name: array.at[place_R].set(values[name], mode='drop')
      for name, array in arrays.items()
    }

  arrays = jax.shard_map(
    shard,
    in_specs=(ROWS, BATCH, BATCH, P()),
    out_specs=ROWS,
    check_vma=False,  # peers along `model` hold equal rows to write
  )(state(index), row_BK, jax.lax.stop_gradient(fresh_BKE), step)
  return dataclasses.replace(index, **arrays)


def count_hits(index: Index, row_BK: jax.Array) -> Index:
  """The index with its rows' hits counted.

  Args:
    index: before.
    row_BK: retrieved rows, B split over `data` and divisible by it; -1: none.
  """

  def shard(hits_n: jax.Array, row_bK: jax.Array) -> jax.Array:
    row_R = jax.lax.all_gather(row_bK.reshape(-1), 'data', axis=0, tiled=True)
    return hits_n.at[_places(row_R, len(hits_n))].add(1, mode='drop')

  hits_N = jax.shard_map(
    shard,
    in_specs=(ROWS, BATCH),
    out_specs=ROWS,
    check_vma=False,  # peers along `model` hold equal rows to count
  )(index.hits_N, row_BK)
  return dataclasses.replace(index, hits_N=hits_N)


def most_hit(index: Index, count: int) -> jax.Array:
  """The rows that were retrieved most since they were written.

  Args:
    index: with counted hits.
    count: static, rows to give.

  Returns:
    row_C, the most retrieved first; -1 where fewer rows were retrieved at all.
    On a TPU the rows of a device are chosen by `approx_max_k`: a row that it
    misses keeps its hits for the next time.
  """

  def shard(hits_n: jax.Array) -> jax.Array:
    n = len(hits_n)
    hits_c, row_c = jax.lax.approx_max_k(
      hits_n.astype(jnp.float32), min(count, n)
    )
    row_c = row_c + mesh_lib.first_row(n)
    hits_D, row_D = (
      jax.lax.all_gather(x, ('data', 'model'), axis=0, tiled=True)
      for x in (hits_c, row_c)
    )
    hits_C, place_C = jax.lax.top_k(hits_D, min(count, len(hits_D)))
    row_C = jnp.where(hits_C > 0, row_D[place_C], -1)
    return jnp.pad(row_C, (0, count - len(row_C)), constant_values=-1)

  return jax.shard_map(shard, in_specs=(ROWS,), out_specs=P(), check_vma=False)(
    index.hits_N
  )


def keep_newer(old: Index, new: Index, step: jax.Array, level: bool) -> Index:
  """A version that is swapped in, with what steps have written since it began.

  Args:
    old: the index in use; writable.
    new: it with the rows of the version, which are donated.
    step: whose parameters made the version.
    level: later steps wrote level rows: they move as the mean does.

  Returns:
    The rows of the version, but those that a later step has written.
  """
  before = state(old)
  merge = jax.jit(
    functools.partial(_keep_newer, level=level),
    donate_argnums=1,
    # Left to itself XLA may choose another split: the step would be compiled
    # again.
    out_shardings=jax.tree.map(lambda array: array.sharding, before),
  )
  return dataclasses.replace(
    new, **merge(before, new.rows_NE, old.valid_N, step)
  )


def _keep_newer(
  old: dict[str, jax.Array],
  rows_NE: jax.Array,
  valid_N: jax.Array,
  step: jax.Array,
  level: bool,
) -> dict[str, jax.Array]:
  def shard(
    old: dict[str, jax.Array],
    rows_nE: jax.Array,
    valid_n: jax.Array,
    step: jax.Array,
  ) -> dict[str, jax.Array]:
    newer_n = old['step_N'] > step
    if level:
      old_nE = old['rows_NE'].astype(jnp.float32)
      moved_E = _mean(rows_nE.astype(jnp.float32) - old_nE, valid_n)
      old = old | {'rows_NE': (old_nE + moved_E[None]).astype(rows_nE.dtype)}
    values = {'rows_NE': rows_nE, 'step_N': step, 'hits_N': jnp.int32(0)}
    return {
      name: jnp.where(
        newer_n.reshape(-1, *(1,) * (array.ndim - 1)), array, values[name]
      )
      for name, array in old.items()
    }

  return jax.shard_map(shard, in_specs=(ROWS, ROWS, ROWS, P()), out_specs=ROWS)(
    old, rows_NE, valid_N, step
  )


def _mean(x_RE: jax.Array, here_R: jax.Array) -> jax.Array:
  """The mean of the rows that are here, over all devices; 0 where none is."""
  sum_E, count = jax.lax.psum(
    (jnp.where(here_R[:, None], x_RE, 0).sum(0), here_R.sum()),
    ('data', 'model'),
  )
  return sum_E / jnp.maximum(count, 1)


def _places(row_R: jax.Array, n: int) -> jax.Array:
  """Where rows lie on this device; n, behind its rows: not here."""
  local_R = row_R - mesh_lib.first_row(n)
  here_R = (row_R >= 0) & (local_R >= 0) & (local_R < n)
  return jnp.where(here_R, local_R, n)
