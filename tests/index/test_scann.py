"""The ScaNN kinds: trees on the devices, searchers of the library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax import config as config_lib
from realm_jax.config import MeshConfig
from realm_jax.index import (
  approximate,
  recall,
  scann_build,
  scann_host,
  shards,
  tune,
)
from realm_jax.index.search import Index, search
from realm_jax.parallel import mesh as mesh_lib

SHARDS = 8


def clustered(n, dim=16, clusters=40, seed=0):
  rng = np.random.default_rng(seed)
  center = rng.normal(size=(clusters, dim))
  rows = center[rng.integers(0, clusters, n)]
  return (rows + 0.3 * rng.normal(size=(n, dim))).astype(np.float32)


def brute(rows, valid, query, k, exclude=None):
  score = query.astype(np.float64) @ rows.astype(np.float64).T
  score[:, ~valid] = -np.inf
  if exclude is not None:
    for score_N, exclude_X in zip(score, exclude, strict=True):
      score_N[exclude_X[exclude_X >= 0]] = -np.inf
  row = np.broadcast_to(np.arange(len(rows)), score.shape)
  return shards.best([(score, row)], k)


def trees(rows, valid, leaves, soar_lambda=0.0):
  """Parts of a tree, a shard each."""
  n, size = len(rows), shards.size(len(rows), SHARDS)
  padded = np.zeros((SHARDS * size, rows.shape[1]), rows.dtype)
  padded[:n] = rows
  alive = np.zeros(SHARDS * size, bool)
  alive[:n] = valid
  mesh = mesh_lib.make_mesh(MeshConfig())
  built = scann_build.build_parts(
    padded.reshape(SHARDS, size, -1),
    alive.reshape(SHARDS, size),
    np.arange(SHARDS, dtype=np.int32),
    mesh,
    num_leaves=leaves,
    threshold=0.2,
    soar_lambda=soar_lambda,
  )
  return dict(enumerate(built))


class Manifest:
  """Stands for one."""

  def __init__(self, rows, soar_lambda):
    self.rows = rows
    self.options = {
      'num_shards': SHARDS,
      'num_leaves': 16,
      'num_leaves_to_search': 1,
      'reordering_num_neighbors': 1,
      'soar_lambda': soar_lambda,
    }


def index_of(parts, rows, valid, leaves, reorder, mesh, soar_lambda=0.0):
  manifest = Manifest(len(rows), soar_lambda)
  # What a run asks for counts, not what a build had found.
  given = {'num_leaves_to_search': leaves, 'reordering_num_neighbors': reorder}
  config = config_lib.from_dict({'index': {'kind': 'scann', **given}})
  n = len(rows)
  total = SHARDS * shards.size(n, SHARDS)

  def put(values):
    return mesh_lib.put_rows(
      lambda a, b: values[a:b], n, values.shape[1:], values.dtype, mesh, total
    )

  return Index(
    put(rows),
    put(valid),
    put(np.zeros((n, 2), np.uint16)),
    tree=approximate.tree(
      parts, manifest, config, mesh, lambda a, b: valid[a:b]
    ),
  )


def run(index, query, k, exclude, mesh):
  with jax.set_mesh(mesh):
    score, row = jax.jit(search, static_argnums=2)(
      index, query, k, None if exclude is None else jnp.asarray(exclude)
    )
  return np.asarray(score), np.asarray(row)


def mesh_of(*shape):
  count = shape[0] * shape[1]
  return mesh_lib.make_mesh(MeshConfig(*shape), jax.devices()[:count])


# Codes of 8 bits hold these rows exactly and every leaf is visited, so that
# nothing but the order of work differs from exact search.
@pytest.mark.parametrize('soar_lambda', [0.0, 1.5])
@pytest.mark.parametrize(
  'n, k, leaves', [(97, 5, 3), (64, 64, 2), (3, 3, 4), (2000, 7, 5), (9, 1, 1)]
)
def test_all_leaves_equal_brute_force(n, k, leaves, soar_lambda):
  rng = np.random.default_rng(n * 100 + k)
  rows = rng.integers(-2, 3, (n, 6)).astype(np.float32)  # ties, duplicates
  query = rng.integers(-2, 3, (5, 6)).astype(np.float32)
  valid = rng.random(n) > 0.1
  exclude = np.where(rng.random((5, 3)) > 0.3, rng.integers(0, n, (5, 3)), -1)
  parts = trees(rows, valid, leaves, soar_lambda)
  want_score, want_row = brute(rows, valid, query, k, exclude)
  mesh = mesh_of(2, 2)
  index = index_of(parts, rows, valid, 10**6, 10**6, mesh, soar_lambda)
  score, row = run(index, query, k, exclude, mesh)
  np.testing.assert_array_equal(score, want_score)
  np.testing.assert_array_equal(row, want_row)


def test_devices_do_not_change_what_is_found():
  rows, query = clustered(3000), clustered(33, seed=1)
  valid = np.random.default_rng(2).random(3000) > 0.1
  parts = trees(rows, valid, 6)
  exclude = np.arange(66).reshape(33, 2)
  found = []
  for shape in ((1, 1), (2, 1), (8, 1), (2, 4)):
    mesh = mesh_of(*shape)
    index = index_of(parts, rows, valid, 2, 16, mesh)
    found.append(run(index, query, 5, exclude, mesh))
  for score, row in found[1:]:
    np.testing.assert_array_equal(row, found[0][1])
    np.testing.assert_array_equal(score, found[0][0])
  score, row = found[0]
  assert valid[row].all()
  np.testing.assert_allclose(
    score, (query[:, None] * rows[row]).sum(-1), rtol=1e-5
  )


def test_recall_on_clustered_rows():
  rows, query = clustered(20000), clustered(100, seed=1)
  valid = np.ones(20000, bool)
  parts = trees(rows, valid, 20)
  _, want = brute(rows, valid, query, 8)
  mesh = mesh_of(8, 1)
  recalls = []
  for leaves in (1, 3, 10):
    index = index_of(parts, rows, valid, leaves, 16, mesh)
    _, row = run(index, query, 8, None, mesh)
    recalls.append(recall.recall_of(row, want))
  # Golden: of this data and these random centers.
  np.testing.assert_allclose(recalls, [0.621, 0.729, 0.935], atol=0.02)


def test_a_second_leaf_finds_more():
  rows, query = clustered(4000), clustered(50, seed=1)
  valid = np.random.default_rng(0).random(4000) > 0.1
  _, want = brute(rows, valid, query, 8)
  mesh = mesh_of(1, 1)
  recalls = []
  for soar_lambda in (0.0, 1.5):
    parts = trees(rows, valid, 16, soar_lambda)
    index = index_of(parts, rows, valid, 2, 64, mesh, soar_lambda)
    _, row = run(index, query, 8, None, mesh)
    assert all(len(set(found)) == 8 for found in row)
    recalls.append(recall.recall_of(row, want))
  assert recalls[1] > recalls[0]
  for shard, part in parts.items():
    start, stop = shards.bounds(shard, 4000, SHARDS)
    for place in np.flatnonzero(valid[start:stop]):
      tiles, _ = np.nonzero(part['row_GTR'] == place)
      assert len(set(tiles)) == 2  # two leaves, so two tiles
  # A long result is filled from rows that come twice.
  _, row = run(index, query, 300, None, mesh)
  assert all(len(set(found)) == 300 and min(found) >= 0 for found in row)


def test_rows_that_die_later_are_not_found():
  rows, query = clustered(500), clustered(4, seed=1)
  alive = np.ones(500, bool)
  parts = trees(rows, alive, 2)
  dead = brute(rows, alive, query, 2)[1]
  alive[dead] = False
  mesh = mesh_of(2, 1)
  index = index_of(parts, rows, alive, 10**6, 64, mesh)
  _, row = run(index, query, 8, None, mesh)
  np.testing.assert_array_equal(row, brute(rows, alive, query, 8)[1])


def test_the_dead_take_no_places():
  rows, query = clustered(2000), clustered(4, seed=1)
  alive = np.ones(2000, bool)
  parts = trees(rows, alive, 4)
  # In every shard more than are scored again, whole tiles among them.
  for near in brute(rows, alive, query, 600)[1]:
    alive[near] = False
  assert 200 < alive.sum() < 1800
  mesh = mesh_of(2, 1)
  _, row = run(
    index_of(parts, rows, alive, 10**6, 8, mesh), query, 8, None, mesh
  )
  np.testing.assert_array_equal(row, brute(rows, alive, query, 8)[1])
  _, row = run(index_of(parts, rows, alive, 2, 8, mesh), query, 8, None, mesh)
  assert alive[row].all() and (row >= 0).all()


@pytest.mark.parametrize('k', [8, 100, 512])
def test_small_leaves_fill_a_long_result(k):
  rows, query = clustered(4096), clustered(4, seed=1)
  alive = np.ones(len(rows), bool)
  mesh = mesh_of(1, 1)
  index = index_of(trees(rows, alive, 256), rows, alive, 4, 64, mesh)
  _, row = run(index, query, k, None, mesh)
  assert (row >= 0).all()


def test_quantization_keeps_what_lies_along_a_row():
  rows = clustered(400, dim=32)
  valid = np.ones(len(rows), bool)
  errors = {}
  for threshold in (0.0, 0.5):
    code, scale = scann_build.quantize(rows, valid, threshold)
    assert code.dtype == jnp.int8
    error = rows - np.asarray(code, np.float32) * np.asarray(scale)
    assert np.abs(error).max() <= 2 * np.asarray(scale).max()
    norm = np.linalg.norm(rows, axis=1)
    along = np.square((error * rows).sum(1) / norm).mean()
    errors[threshold] = along, np.square(error).sum(1).mean()
  assert errors[0.5][0] < 0.3 * errors[0.0][0]  # along the row: less
  assert errors[0.5][1] < 2 * errors[0.0][1]  # in all: not much more


def test_tiles_hold_every_living_row_once():
  rows = clustered(1000)
  valid = np.random.default_rng(0).random(1000) > 0.2
  parts = trees(rows, valid, 3)
  size = shards.size(1000, SHARDS)
  for shard, part in parts.items():
    row = part['row_GTR']
    start, stop = shards.bounds(shard, 1000, SHARDS)
    want = np.flatnonzero(valid[start:stop])
    assert sorted(row[row >= 0]) == want.tolist()
    assert row.shape == (scann_build.num_tiles(size, 3), scann_build.TILE)
    # A tile is filled from its front, and its center is that of its rows.
    tile = rows[start:stop][row[0][row[0] >= 0]]
    np.testing.assert_allclose(part['center_GTE'][0], tile.mean(0), atol=1e-5)
    assert (np.diff((row >= 0).astype(int), axis=1) <= 0).all()


@pytest.mark.parametrize('removed', [0.0, 0.1])
@pytest.mark.parametrize('n', [5, 300, 5000])
def test_the_library_is_searched_like_the_rest(n, removed):
  config = config_lib.from_dict({'index': {'num_shards': 3}})
  rows, query = clustered(n), clustered(9, seed=1)
  valid = np.random.default_rng(0).random(n) >= removed
  by_shard = {}
  for shard in range(3):
    start, stop = shards.bounds(shard, n, 3)
    row = (start + np.flatnonzero(valid[start:stop])).astype(np.int32)
    found = scann_host.build(rows[row], row, config, 2)
    if found is not None:
      by_shard[shard] = found
  searchers = scann_host.Searchers(by_shard, 10**6, 500)
  score, row = searchers.search(query, 7)
  want_score, want_row = brute(rows, valid, query, 7)
  assert score.dtype == np.float32
  assert row.dtype == np.int32
  np.testing.assert_array_equal(row, want_row)
  np.testing.assert_allclose(score, want_score, rtol=1e-5)


# Of one length, about as what an embedder gives.
ROWS = clustered(10_000)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)


@pytest.fixture(scope='module', params=[0.0, 1.5])
def searcher(request):
  options = {'num_leaves': 40, 'soar_lambda': request.param}
  config = config_lib.from_dict({'index': options})
  row = np.arange(10_000, dtype=np.int32)
  return scann_host.build(ROWS, row, config, 2)


class TestSearchers:
  """Of one shard whose rows the library codes."""

  def test_recall(self, searcher):
    query = ROWS[::200] + clustered(50, seed=1) / 20
    alive = np.ones(10_000, bool)
    want = brute(ROWS, alive, query, 8)[1]
    found = scann_host.Searchers({0: searcher}, 8, 400).search(query, 8)[1]
    assert recall.recall_of(found, want) >= 0.95
    less = scann_host.Searchers({0: searcher}, 1, 8).search(query, 8)[1]
    assert recall.recall_of(less, want) < recall.recall_of(found, want)

  def test_a_long_result_is_filled(self, searcher):
    query = clustered(5, seed=1)
    searchers = scann_host.Searchers({0: searcher}, 1, 10)
    score, row = searchers.search(query, 3000)
    assert (row >= 0).all() and (np.diff(score, axis=1) <= 0).all()
    assert all(len(set(found)) == 3000 for found in row)

  @pytest.mark.parametrize('k', [1, 8])
  def test_what_was_removed_is_not_found(self, searcher, k):
    query = clustered(5, seed=1)
    alive = np.ones(10_000, bool)
    alive[brute(ROWS, alive, query, 100)[1]] = False
    searchers = scann_host.Searchers({0: searcher}, 40, 10_000)
    index = scann_host.HostIndex(None, searchers, alive_N=alive)
    score, row = index.search(query, k)
    want_score, want_row = brute(ROWS, alive, query, k)
    np.testing.assert_array_equal(row, want_row)
    np.testing.assert_allclose(score, want_score, rtol=1e-5)
    exclude = np.full((5, 3), -1)
    exclude[:, 1] = want_row[:, 0]
    _, row = index.search(query, k, exclude)
    left = brute(ROWS, alive, query, k + 1)[1][:, 1:]
    np.testing.assert_array_equal(row, left)
    alive[:] = False
    alive[7] = True
    score, row = index.search(query, 2)
    assert row.tolist() == [[7, -1]] * 5
    assert (score[:, 1] == -np.inf).all()

  def test_queries_that_are_none_are_refused(self, searcher):
    searchers = scann_host.Searchers({0: searcher}, 8, 100)
    query = clustered(5, seed=1)
    with pytest.raises(ValueError, match='k is 0'):
      searchers.search(query, 0)
    with pytest.raises(ValueError, match='0 queries'):
      searchers.search(query[:0], 8)
    with pytest.raises(ValueError, match='have 5 dimensions, the index has 16'):
      searchers.search(query[:, :5], 8)
    query[3, 2] = np.nan
    with pytest.raises(ValueError, match=r'1 of 5 queries .* number 3'):
      searchers.search(query, 8)


class TestChoose:
  """Options by measurement; recall here is known."""

  @staticmethod
  def measure(leaves, reorder):
    return min(leaves / 40, 1.0) * (1.0 if reorder >= 32 else 0.8)

  def choose(self, before=None, **options):
    config = config_lib.from_dict({'index': options})
    return tune.choose(self.measure, config, 0.9, 100, before or {})

  def test_the_least_that_reach_the_target(self):
    leaves, reorder = self.choose()
    assert 36 <= leaves <= 54 and reorder == 32

  def test_options_of_the_version_before_stay(self):
    before = {'num_leaves_to_search': 70, 'reordering_num_neighbors': 99}
    assert self.choose(before) == (70, 99)
    before['num_leaves_to_search'] = 3  # not good enough any more
    assert self.choose(before)[0] >= 36
    before['num_leaves_to_search'] = 100  # more than twice what it takes
    assert self.choose(before)[0] <= 54

  def test_what_is_given_is_taken(self):
    given = {'num_leaves_to_search': 7, 'reordering_num_neighbors': 8}
    assert self.choose(**given) == (7, 8)
    assert self.choose(num_leaves_to_search=7)[0] == 7

  def test_a_target_out_of_reach_takes_all_leaves(self):
    config = config_lib.from_dict({})
    found = tune.choose(lambda *_: 0.5, config, 1.0, 100, {})
    assert found == (100, 16)
