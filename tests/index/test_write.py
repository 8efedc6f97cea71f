"""Rows that are written into an index over several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.config import MeshConfig
from realm_jax.index.search import Index
from realm_jax.index.write import write_rows
from realm_jax.parallel import mesh as mesh_lib


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', [(1, 1), (8, 1), (2, 4)])
def test_the_first_of_each_row_is_written_where_it_lies(shape, dtype):
  rng = np.random.default_rng(0)
  n, batch, k, size = 37, 8, 5, 4
  before = rng.normal(size=(n, size)).astype(jnp.dtype(dtype))
  mesh = mesh_lib.make_mesh(
    MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]]
  )

  def put(values):
    return mesh_lib.put_rows(
      lambda a, b: values[a:b], n, values.shape[1:], values.dtype, mesh
    )

  index = Index(put(before), put(np.ones(n, bool)), put(np.zeros((n, 2))))
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
    found = jax.jit(write_rows, donate_argnums=0)(index, **inputs)
  np.testing.assert_array_equal(np.asarray(found.rows_NE)[:n], want)
