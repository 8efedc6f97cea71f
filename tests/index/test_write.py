"""Rows that are written into an index over several devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.config import MeshConfig
from realm_jax.index import write
from realm_jax.index.search import Index
from realm_jax.parallel import mesh as mesh_lib

SHAPES = [(1, 1), (8, 1), (2, 4)]


def make_index(before, shape, step):
  """A writable index with these rows, and its mesh."""
  n = len(before)
  mesh = mesh_lib.make_mesh(
    MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]]
  )

  def put(values):
    return mesh_lib.put_rows(
      lambda a, b: values[a:b], n, values.shape[1:], values.dtype, mesh
    )

  index = Index(put(before), put(np.ones(n, bool)), put(np.zeros((n, 2))))
  return write.writable(index, mesh, step, count_hits=True), mesh


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', SHAPES)
def test_the_first_of_each_row_is_written_where_it_lies(shape, dtype):
  rng = np.random.default_rng(0)
  n, batch, k, size = 37, 8, 5, 4
  before = rng.normal(size=(n, size)).astype(jnp.dtype(dtype))
  index, mesh = make_index(before, shape, step=3)
  row = rng.integers(-1, n, (batch, k)).astype(np.int32)
  row[3] = row[0]  # several at once, some of them in one query
  fresh = rng.normal(size=(batch, k, size)).astype(np.float32)
  want = before.copy()
  for place in reversed(range(batch * k)):
    if row.flat[place] >= 0:
      want[row.flat[place]] = fresh.reshape(-1, size)[place].astype(
        before.dtype
      )
  inputs = mesh_lib.put_whole({'row_BK': row, 'fresh_BKE': fresh}, mesh)
  with jax.set_mesh(mesh):
    found = jax.jit(write.write_rows, donate_argnums=0)(
      index, **inputs, step=jnp.int32(9)
    )
  np.testing.assert_array_equal(np.asarray(found.rows_NE)[:n], want)
  made = np.where(np.isin(np.arange(n), row), 9, 3)
  np.testing.assert_array_equal(np.asarray(found.step_N)[:n], made)


def level(rows, like):
  """Rows with the mean and the spread of others."""
  from_mean = rows - rows.mean(0)
  spread = np.linalg.norm(like - like.mean(0)) / np.linalg.norm(from_mean)
  return like.mean(0) + from_mean * spread


@pytest.mark.parametrize('shape', SHAPES)
def test_level_rows_keep_mean_and_spread(shape):
  rng = np.random.default_rng(1)
  n, batch, k, size = 37, 8, 5, 4
  before = rng.normal(size=(n, size)).astype(np.float32)
  index, mesh = make_index(before, shape, step=3)
  row = rng.integers(-1, n, (batch, k)).astype(np.int32)
  fresh = rng.normal(3, 2, size=(batch, k, size)).astype(np.float32)
  written, place = np.unique(row, return_index=True)
  written, place = written[written >= 0], place[written >= 0]
  new = fresh.reshape(-1, size)[place]
  want = before.copy()
  want[written] = level(new, before[written])
  inputs = mesh_lib.put_whole({'row_BK': row, 'fresh_BKE': fresh}, mesh)
  with jax.set_mesh(mesh):
    found = jax.jit(write.write_rows, static_argnames='level')(
      index, **inputs, step=jnp.int32(9), level=True
    )
    none = jax.jit(write.write_rows, static_argnames='level')(
      index,
      jnp.full_like(inputs['row_BK'], -1),
      inputs['fresh_BKE'],
      jnp.int32(9),
      level=True,
    )
  rows = np.asarray(found.rows_NE)[:n]
  np.testing.assert_allclose(rows, want, atol=1e-5)
  np.testing.assert_allclose(rows.mean(0), before.mean(0), atol=1e-5)
  # They are found in the order that they would have been found in.
  query = rng.normal(size=size)
  order = np.argsort(rows[written] @ query)
  np.testing.assert_array_equal(order, np.argsort(new @ query))
  np.testing.assert_array_equal(np.asarray(none.rows_NE)[:n], before)


@pytest.mark.parametrize('shape', SHAPES)
def test_level_rows_move_with_the_version_that_comes(shape):
  rng = np.random.default_rng(2)
  n, size = 37, 4
  before = rng.normal(size=(n, size)).astype(np.float32)
  index, mesh = make_index(before, shape, step=2)
  row_BK = np.arange(16, dtype=np.int32).reshape(8, 2)
  fresh = rng.normal(5, size=(8, 2, size)).astype(np.float32)
  inputs = mesh_lib.put_whole({'row_BK': row_BK, 'fresh_BKE': fresh}, mesh)
  version = (before + rng.normal(2, size=(n, size))).astype(np.float32)
  with jax.set_mesh(mesh):
    old = jax.jit(write.write_rows, static_argnames='level')(
      index, **inputs, step=jnp.int32(6), level=True
    )
    rows_NE = mesh_lib.put_rows(
      lambda a, b: version[a:b], n, (size,), np.float32, mesh
    )
    found = write.keep_newer(
      old, dataclasses.replace(old, rows_NE=rows_NE), jnp.int32(5), level=True
    )
  rows = np.asarray(found.rows_NE)[:n]
  np.testing.assert_array_equal(rows[16:], version[16:])
  before = np.asarray(old.rows_NE)[:n]
  scale = np.linalg.norm(version - version.mean(0))
  scale /= np.linalg.norm(before - before.mean(0))
  want = version.mean(0) + (before[:16] - before.mean(0)) * scale
  np.testing.assert_allclose(rows[:16], want, atol=1e-5)


@pytest.mark.parametrize('shape', SHAPES)
def test_the_most_retrieved_rows_are_given_until_they_are_written(shape):
  n, size = 37, 4
  index, mesh = make_index(np.zeros((n, size), np.float32), shape, step=0)
  row_BK = np.full((8, 3), -1, np.int32)
  row_BK[:6, 0] = 36  # six times, five, four
  row_BK[1:6, 1] = 20
  row_BK[:4, 2] = 1
  fresh_BKE = np.ones((8, 1, size), np.float32)

  @jax.jit
  def step(index, row_BK, fresh_BKE):
    index = write.count_hits(index, row_BK)
    best_C = write.most_hit(index, 8)
    only_C = jnp.where(jnp.arange(8) < 2, best_C, -1)
    index = write.write_rows(index, only_C[:, None], fresh_BKE, jnp.int32(1))
    return index, best_C

  inputs = mesh_lib.put_whole({'row_BK': row_BK, 'fresh_BKE': fresh_BKE}, mesh)
  with jax.set_mesh(mesh):
    index, first_C = step(index, **inputs)
    hits = np.asarray(index.hits_N)
    inputs['row_BK'] = jnp.full_like(inputs['row_BK'], -1)
    _, second_C = step(index, **inputs)
  assert list(first_C) == [36, 20, 1, -1, -1, -1, -1, -1]
  assert hits[1] == hits.sum() == 4
  assert list(second_C)[:2] == [1, -1]


@pytest.mark.parametrize('shape', SHAPES)
def test_a_version_does_not_undo_what_later_steps_wrote(shape):
  n, size = 37, 4
  index, mesh = make_index(np.zeros((n, size), np.float32), shape, step=2)
  row_BK = np.arange(16, dtype=np.int32).reshape(8, 2)
  inputs = mesh_lib.put_whole(
    {'row_BK': row_BK, 'fresh_BKE': np.ones((8, 2, size), np.float32)}, mesh
  )
  with jax.set_mesh(mesh):
    old = jax.jit(write.write_rows)(index, **inputs, step=jnp.int32(6))
    old = jax.jit(write.count_hits)(old, inputs['row_BK'] + 8)
    found = {
      step: write.keep_newer(
        old,
        dataclasses.replace(old, rows_NE=jnp.full_like(old.rows_NE, 2)),
        jnp.int32(step),
        level=False,
      )
      for step in (5, 6)
    }
  assert write._merge.cache_info().hits > 0  # compiled once
  written = np.arange(n) < 16
  for step, index in found.items():
    kept = written & (step < 6)
    np.testing.assert_array_equal(
      np.asarray(index.rows_NE)[:n],
      np.tile(np.where(kept, 1, 2)[:, None], size),
    )
    made = np.asarray(index.step_N)[:n]
    np.testing.assert_array_equal(made, np.where(kept, 6, step))
    hits = np.asarray(index.hits_N)[:n]
    np.testing.assert_array_equal(hits, kept & (np.arange(n) >= 8))
    assert index.rows_NE.sharding == old.rows_NE.sharding
