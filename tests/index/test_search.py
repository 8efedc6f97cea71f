"""Search against brute force in float64: odd sizes, ties, exclusions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.config import MeshConfig
from realm_jax.index.gather import gather
from realm_jax.index.search import Index, search
from realm_jax.parallel import mesh as mesh_lib


def _index(rows_NE, valid_N, tokens_NL, mesh, block):
  n = len(rows_NE)

  def put(values):
    return mesh_lib.put_rows(
      lambda a, b: values[a:b], n, values.shape[1:], values.dtype, mesh
    )

  return Index(put(rows_NE), put(valid_N), put(tokens_NL), block=block)


def _brute(rows_NE, valid_N, query_BE, k, exclude_BX):
  score_BN = query_BE.astype(np.float64) @ rows_NE.astype(np.float64).T
  score_BN[:, ~valid_N] = -np.inf
  for score_N, exclude_X in zip(score_BN, exclude_BX, strict=True):
    score_N[exclude_X[exclude_X >= 0]] = -np.inf
  row_BN = np.argsort(-score_BN, 1, kind='stable')[:, :k]
  score_BK = np.take_along_axis(score_BN, row_BN, 1)
  row_BN[score_BK == -np.inf] = -1
  pad = k - row_BN.shape[1]
  if pad > 0:
    row_BN = np.pad(row_BN, ((0, 0), (0, pad)), constant_values=-1)
    score_BK = np.pad(score_BK, ((0, 0), (0, pad)), constant_values=-np.inf)
  return score_BK, row_BN


@pytest.mark.parametrize('shape', [(1, 1), (8, 1), (4, 2), (2, 4)])
@pytest.mark.parametrize(
  'n, k, block',
  [(97, 5, 8), (64, 64, 16), (3, 3, 8), (200, 7, 1000), (9, 1, 2)],
)
def test_equals_brute_force(shape, n, k, block):
  rng = np.random.default_rng(n * 100 + k)
  # Small integers: exact in float32, with many ties and duplicate rows.
  rows = rng.integers(-2, 3, (n, 6)).astype(np.float32)
  query = rng.integers(-2, 3, (5, 6)).astype(np.float32)
  valid = rng.random(n) > 0.1
  exclude = np.where(rng.random((5, 3)) > 0.3, rng.integers(0, n, (5, 3)), -1)
  mesh = mesh_lib.make_mesh(
    MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]]
  )
  index = _index(rows, valid, np.zeros((n, 4), np.uint16), mesh, block)
  with jax.set_mesh(mesh):
    score, row = jax.jit(search, static_argnums=2)(
      index, query, k, jnp.asarray(exclude)
    )
  want_score, want_row = _brute(rows, valid, query, k, exclude)
  np.testing.assert_array_equal(np.asarray(row), want_row)
  np.testing.assert_array_equal(np.asarray(score), want_score)


def test_no_score_matrix_in_memory():
  mesh = mesh_lib.make_mesh(MeshConfig(1, 1), jax.devices()[:1])
  n, batch = 1 << 16, 64
  index = Index(
    jax.ShapeDtypeStruct((n, 16), jnp.bfloat16),
    jax.ShapeDtypeStruct((n,), jnp.bool_),
    jax.ShapeDtypeStruct((n, 4), jnp.uint16),
    block=1024,
  )
  with jax.set_mesh(mesh):
    compiled = (
      jax.jit(search, static_argnums=2)
      .lower(index, jax.ShapeDtypeStruct((batch, 16), jnp.float32), 8)
      .compile()
    )
  assert compiled.memory_analysis().temp_size_in_bytes < n * batch * 4 / 4


def test_k_and_dimensions_are_checked():
  mesh = mesh_lib.make_mesh(MeshConfig(1, 1), jax.devices()[:1])
  index = _index(
    np.zeros((4, 3), np.float32),
    np.ones(4, bool),
    np.zeros((4, 2), np.uint16),
    mesh,
    8,
  )
  with jax.set_mesh(mesh):
    with pytest.raises(ValueError, match='k is 0'):
      search(index, jnp.zeros((1, 3)), 0)
    with pytest.raises(ValueError, match='4 dimensions, the index has 3'):
      search(index, jnp.zeros((1, 4)), 1)


@pytest.mark.parametrize('shape', [(1, 1), (8, 1), (2, 4)])
def test_gather_takes_rows_from_their_devices(shape):
  rng = np.random.default_rng(0)
  n, batch = 37, 8
  tokens = rng.integers(0, 60000, (n, 5)).astype(np.uint16)
  mesh = mesh_lib.make_mesh(
    MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]]
  )
  table = mesh_lib.put_rows(lambda a, b: tokens[a:b], n, (5,), np.uint16, mesh)
  row = rng.integers(-1, n, (batch, 3)).astype(np.int32)
  with jax.set_mesh(mesh):
    found = np.asarray(jax.jit(gather)(table, row))
  want = np.where(row[..., None] >= 0, tokens[row].astype(np.int32), 0)
  np.testing.assert_array_equal(found, want)


def test_mesh_must_match_the_devices():
  with pytest.raises(ValueError, match=r'mesh.data 3 x mesh.model 2'):
    mesh_lib.make_mesh(MeshConfig(3, 2))
  with pytest.raises(ValueError, match='batch_size: 12'):
    mesh_lib.check_batch('batch_size', 12, mesh_lib.make_mesh(MeshConfig()))
