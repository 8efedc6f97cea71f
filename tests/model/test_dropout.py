"""Dropout: how much it drops, and that no layout changes what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from realm_jax import config as config_lib
from realm_jax.model.dropout import dropout
from realm_jax.parallel import mesh as mesh_lib


def kept(shape, rate, seed):
  ones = jnp.ones(shape, jnp.float32)
  return np.asarray(dropout(ones, rate, jax.random.key(seed))) != 0


@pytest.mark.parametrize('rate', [0.1, 0.5])
def test_drops_its_rate_of_every_row_and_column(rate):
  kept_RC = kept((40, 50, 600), rate, 0).reshape(2000, 600)
  for axis, count in ((0, 2000), (1, 600)):
    # Five standard deviations of independent draws.
    deviation = 5 * np.sqrt(rate * (1 - rate) / count)
    assert abs(kept_RC.mean(axis) - (1 - rate)).max() < deviation
  spread = kept_RC.mean(1).std() / np.sqrt(rate * (1 - rate) / 600)
  assert 0.9 < spread < 1.1  # rows differ as independent draws do


def test_rows_columns_and_keys_are_independent():
  kept_RC = kept((400, 512), 0.5, 1)
  other_RC = kept((400, 512), 0.5, 2)
  correlations = np.corrcoef(np.concatenate([kept_RC, other_RC]))
  np.fill_diagonal(correlations, 0)
  assert abs(correlations).max() < 6.5 / np.sqrt(512)
  columns = np.corrcoef(kept_RC.T)
  np.fill_diagonal(columns, 0)
  assert abs(columns).max() < 6.5 / np.sqrt(400)


def test_keeps_the_mean_and_the_dtype():
  x = jnp.full((64, 512), 3.0, jnp.bfloat16)
  y = dropout(x, 0.25, jax.random.key(3))
  assert y.dtype == jnp.bfloat16
  assert set(np.unique(np.asarray(y, np.float32))) == {0.0, 4.0}
  assert dropout(x, 0.25, None) is x
  assert dropout(x, 0.0, jax.random.key(3)) is x


@pytest.mark.parametrize('shape', [(8, 1), (2, 4)])
def test_layout_changes_nothing_and_no_device_makes_more_than_its_own(shape):
  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(*shape))
  x = jax.random.normal(jax.random.key(0), (16, 24, 1024))
  sharding = NamedSharding(mesh, mesh_lib.BATCH)
  key = jax.random.key(5)

  def run(x, key):
    return dropout(x, 0.3, key)

  jitted = jax.jit(run, in_shardings=(sharding, None), out_shardings=sharding)
  np.testing.assert_array_equal(
    jitted(jax.device_put(x, sharding), key), run(x, key)
  )
  memory = jitted.lower(x, key).compile().memory_analysis()
  assert memory.temp_size_in_bytes < x.nbytes // shape[0]
