"""Search against brute force in float64: odd sizes, ties, exclusions."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.config import MeshConfig
from realm_jax.index import exact, exact_gpu
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
  [
    (97, 5, 8),
    (64, 64, 16),
    (3, 3, 8),
    (200, 7, 1000),
    (9, 1, 2),
    (5001, 3, 512),
  ],
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


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('n', [4097, 4099])  # rows in the last block: 1 and 3
def test_equal_rows_come_in_order_from_a_short_last_block(dtype, n):
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(n, 128)).astype(np.float32)
  row_K = np.array([7, 900, 2000, 2001, 4095, n - 1])
  rows[row_K] = 3 * rows[0]
  query = (rows[n - 1] + 0.1 * rng.normal(size=(64, 128))).astype(np.float32)
  arrays = (jnp.asarray(rows, dtype), jnp.ones(n, bool), jnp.asarray(query))
  _, found_BK = jax.jit(exact.top_k, static_argnums=(3, 4))(*arrays, 5, 4096)
  np.testing.assert_array_equal(found_BK, np.tile(row_K[:5], (64, 1)))


@pytest.mark.parametrize('kind', ['float32', 'bfloat16', 'kernel', 'products'])
@pytest.mark.parametrize('n, k, group', [(5001, 4, 32), (300, 400, 1)])
def test_each_way_to_the_best_groups(kind, n, k, group):
  """What runs on a CPU, on a GPU (interpreted) and on a TPU (its products)."""
  rng = np.random.default_rng(n)
  dtype = jnp.float32 if kind == 'float32' else jnp.bfloat16
  rows = np.array(jnp.asarray(rng.normal(size=(n, 48)), dtype))
  rows[rng.integers(0, n, 50)] = rows[rng.integers(0, n, 50)]  # duplicates
  rows[n - 1] = rows[0] * 3
  query = rng.normal(size=(7, 48)).astype(np.float32)
  query[0] = rows[0].astype(np.float32)  # finds the last row
  valid = rng.random(n) > 0.1
  valid[n - 1] = True
  arrays = tuple(map(jnp.asarray, (rows, valid, query)))
  if kind == 'kernel':
    best = exact_gpu.best_groups(*arrays, k, group, interpret=True)
  else:
    product = {'products': exact.bfloat16_products}.get(
      kind, exact.float32_product
    )
    best = exact.best_groups(*arrays, k, group, 256, product)
  found = exact.rescore(*arrays, best, k, group)
  score, row = map(np.asarray, found)
  row = np.where(score == -np.inf, -1, row)
  want_score, want_row = _brute(rows, valid, query, k, np.full((7, 1), -1))
  assert row[0, 0] == n - 1
  np.testing.assert_allclose(score, want_score, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(row, want_row)


@pytest.mark.parametrize(
  'dtype, n, k, group, size',
  [
    ('float32', 1500, 4, 32, 48),
    ('bfloat16', 9001, 2, 32, 160),  # top-k first sees groups of groups
    ('bfloat16', 2000, 3, exact_gpu.GROUP, 256),
  ],
)
def test_the_kernel_takes_every_size(dtype, n, k, group, size):
  rng = np.random.default_rng(n)
  rows = np.array(jnp.asarray(rng.normal(size=(n, size)), jnp.dtype(dtype)))
  query = rng.normal(size=(5, size)).astype(np.float32)
  valid = rng.random(n) > 0.1
  arrays = tuple(map(jnp.asarray, (rows, valid, query)))
  best = exact_gpu.best_groups(*arrays, k, group, interpret=True)
  score, row = map(np.asarray, exact.rescore(*arrays, best, k, group))
  want_score, want_row = _brute(rows, valid, query, k, np.full((5, 1), -1))
  np.testing.assert_allclose(score, want_score, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(row, want_row)


def test_bfloat16_queries_are_taken_as_they_are():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(97, 16)).astype(np.float32)
  query = jnp.asarray(rng.normal(size=(5, 16)), jnp.bfloat16)
  mesh = mesh_lib.make_mesh(MeshConfig(2, 1), jax.devices()[:2])
  index = _index(rows, np.ones(97, bool), np.zeros((97, 2)), mesh, 16)
  with jax.set_mesh(mesh):
    found = jax.jit(search, static_argnums=2)(index, query, 4)
    want = jax.jit(search, static_argnums=2)(
      index, query.astype(jnp.float32), 4
    )
  np.testing.assert_array_equal(found[1], want[1])
  np.testing.assert_array_equal(found[0], want[0])


def test_parts_of_a_query_add_up_to_it():
  rng = np.random.default_rng(0)
  query = rng.normal(size=(9, 64)).astype(np.float32)
  parts = jax.jit(exact_gpu.bfloat16_parts)(query)
  total = sum(np.asarray(part, np.float64) for part in parts)
  np.testing.assert_array_equal(total, query.astype(np.float64))
  whole = jnp.asarray(query, jnp.bfloat16)
  assert exact_gpu.bfloat16_parts(whole)[0] is whole


@pytest.mark.parametrize(
  'n, dim, k, rows_dtype, query_dtype',
  [
    (13353718, 128, 8, 'bfloat16', 'float32'),
    (13353718, 128, 8, 'bfloat16', 'bfloat16'),
    (1000001, 384, 16, 'float32', 'float32'),
    (104327, 128, 5000, 'bfloat16', 'float32'),
  ],
)
def test_kernel_lowers_for_a_gpu(n, dim, k, rows_dtype, query_dtype):
  search_fn = jax.jit(functools.partial(exact.top_k, k=k, block=4096))
  kernel = jax.export.DisabledSafetyCheck.custom_call('__gpu$xla.gpu.triton')
  exported = jax.export.export(
    search_fn, platforms=['cuda'], disabled_checks=[kernel]
  )(
    jax.ShapeDtypeStruct((n, dim), rows_dtype),
    jax.ShapeDtypeStruct((n,), jnp.bool_),
    jax.ShapeDtypeStruct((512, dim), query_dtype),
  )
  assert 'group_maxima' in exported.mlir_module()
  # No product over all rows is left to XLA.
  assert f'x{n}xf32' not in exported.mlir_module()
  assert f'{n}x512xf32' not in exported.mlir_module()


def test_where_the_kernel_does_not_fit():
  assert exact_gpu.fits(13_353_718, 128) and exact_gpu.fits(13_353_718, 768)
  assert not exact_gpu.fits(1000, 130)
  assert not exact_gpu.fits(2**24, 128)  # 2**31 numbers


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_memory_beside_the_index(dtype):
  mesh = mesh_lib.make_mesh(MeshConfig(1, 1), jax.devices()[:1])
  n = 500_000
  index = Index(
    jax.ShapeDtypeStruct((n, 128), dtype),
    jax.ShapeDtypeStruct((n,), jnp.bool_),
    jax.ShapeDtypeStruct((n, 4), jnp.uint16),
  )
  query = jax.ShapeDtypeStruct((256, 128), jnp.float32)
  with jax.set_mesh(mesh):
    compiled = (
      jax.jit(search, static_argnums=2).lower(index, query, 8).compile()
    )
  # No score matrix, no copy of the rows, nor of them in float32.
  size = n * 128 * jnp.dtype(dtype).itemsize
  assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * size


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
    with pytest.raises(ValueError, match='k is 0'):
      search(index, jnp.zeros((1, 3)), 0, jnp.zeros((1, 2), jnp.int32))
    with pytest.raises(ValueError, match='0 queries among 4 rows'):
      search(index, jnp.zeros((0, 3)), 1)
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
