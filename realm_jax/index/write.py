"""Writing rows of an index that is split over all devices.

An index that is written into knows of every row which step's parameters made
it, and may count how often a row was retrieved since. Both are split over the
devices as the rows are. `write_rows`, `count_hits` and `most_hit` run inside
jit under `jax.set_mesh`; with the index donated they work in place.

Half of what training changes of an embedding is the same for all of them (0.48
of the mean square after 15 steps of experiments/wiki_tiny.py, 0.50 after 30),
and queries move with it: fresh rows among old ones win every search. Rows that
are renewed before others are therefore written `level`: moved and scaled so
that mean and spread of the written rows stay as they were. All scores of a
query then differ from true ones by one number and one factor; the step uses
none of them. There, of what fresh embeddings find among rows of which all, 90%,
50% are 30 steps old (the others written 32 at a time, at random):

  as they are           0.59 0.24 0.54
  without their mean    0.59 0.59 0.62
  level                 0.59 0.60 0.70

Where the rows written are those that questions retrieve (SQuAD's, 8 at a time,
3 rows each), fewer are enough: of 60 steps' change 0.62 is found before, 0.70
when 400 questions have been asked and 15% of the rows written, level; as they
are 0.59 to 0.64, and 61% of what is found then is fresh where 35% should be.
"""

import dataclasses
import functools
from collections.abc import Callable

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
    level: static; keep the mean and the spread of the rows written: one row
      alone stays as it is, few move too little.

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
      here_R = place_R < n
      fresh_RE = _level(
        fresh_RE, _moments(fresh_RE, here_R), _moments(old_RE, here_R)
      )
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
    level: later steps wrote level rows: they move as all of them do.

  Returns:
    The rows of the version, but those that a later step has written.
  """
  before = state(old)
  # Left to itself XLA may choose another split: the step would be compiled
  # again.
  shardings = tuple((name, array.sharding) for name, array in before.items())
  merge = _merge(level, shardings)
  return dataclasses.replace(
    new, **merge(before, new.rows_NE, old.valid_N, step)
  )


@functools.cache  # the first swap alone waits for a compilation
def _merge(
  level: bool, shardings: tuple[tuple[str, jax.sharding.Sharding], ...]
) -> Callable[..., dict[str, jax.Array]]:
  return jax.jit(
    functools.partial(_keep_newer, level=level),
    donate_argnums=1,
    out_shardings=dict(shardings),
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
      moved_nE = _level(
        old_nE,
        _moments(old_nE, valid_n),
        _moments(rows_nE.astype(jnp.float32), valid_n),
      )
      old = old | {'rows_NE': moved_nE.astype(rows_nE.dtype)}
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


def _moments(x_RE: jax.Array, here_R: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and root mean square distance from it, of what is here of all rows.

  Over all devices; runs inside shard_map.
  """

  def mean(values: jax.Array) -> jax.Array:
    total = jax.lax.psum(values.sum(0), ('data', 'model'))
    return total / jnp.maximum(count, 1)

  count = jax.lax.psum(here_R.sum(), ('data', 'model'))
  mean_E = mean(jnp.where(here_R[:, None], x_RE, 0))
  squared_R = jnp.square(x_RE - mean_E[None]).sum(1)
  return mean_E, jnp.sqrt(mean(jnp.where(here_R, squared_R, 0)))


def _level(
  x_RE: jax.Array,
  have: tuple[jax.Array, jax.Array],
  want: tuple[jax.Array, jax.Array],
) -> jax.Array:
  """Rows moved and scaled from the moments that they have to others."""
  factor = jnp.where(have[1] > 0, want[1] / have[1], 1.0)
  return want[0][None] + (x_RE - have[0][None]) * factor


def _places(row_R: jax.Array, n: int) -> jax.Array:
  """Where rows lie on this device; n, behind its rows: not here."""
  local_R = row_R - mesh_lib.first_row(n)
  here_R = (row_R >= 0) & (local_R >= 0) & (local_R < n)
  return jnp.where(here_R, local_R, n)
