import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax import config as config_lib
from realm_jax.workdir import digest


def _tree():
  random = np.random.default_rng(0)
  return {
    'layers': {'kernel': random.normal(size=(8, 16)).astype(np.float32)},
    'half': random.normal(size=(16, 8)).astype(jnp.bfloat16),
    'count': np.arange(8, dtype=np.int32),
    'flag': np.array([True, False]),
    'scale': np.float32(3),
    'empty': np.zeros((0, 8), np.float32),
  }


@pytest.mark.parametrize('axis_type', ['Auto', 'Explicit'])
@pytest.mark.parametrize('shape', [(8, 1), (4, 2), (2, 4)])
def test_equal_for_every_layout(shape, axis_type):
  kind = getattr(jax.sharding.AxisType, axis_type)
  mesh = jax.make_mesh(shape, ('data', 'model'), axis_types=(kind, kind))
  tree = _tree()
  want = digest.tree_digest(tree)
  specs = {'kernel': P('data', 'model'), 'half': P('model', 'data')}
  placed = jax.tree_util.tree_map_with_path(
    lambda path, leaf: jax.device_put(
      leaf, NamedSharding(mesh, specs.get(path[-1].key, P()))
    ),
    tree,
  )
  assert digest.tree_digest(placed) == want
  rows = NamedSharding(mesh, P(('data', 'model')))
  placed['count'] = jax.device_put(tree['count'], rows)
  assert digest.tree_digest(placed) == want


def test_every_bit_counts():
  tree = _tree()
  want = digest.tree_digest(tree)
  for name in ('half', 'count', 'flag'):
    flat = tree[name].reshape(-1).view(np.uint8)
    for byte in range(0, flat.size, 7):
      flip = 1 << byte % 8 if name != 'flag' else 1
      flat[byte] ^= flip
      assert digest.tree_digest(tree) != want, (name, byte)
      flat[byte] ^= flip
  assert digest.tree_digest(tree) == want


def test_the_same_words_in_another_place_differ():
  tree = _tree()
  want = digest.tree_digest(tree)
  kernel = tree['layers']['kernel']
  swaps = [((0, 0), (0, 1)), ((0, 0), (7, 15)), ((3, 2), (2, 3))]
  for a, b in swaps:
    kernel[a], kernel[b] = kernel[b], kernel[a]
    assert digest.tree_digest(tree) != want
    kernel[a], kernel[b] = kernel[b], kernel[a]
  others = [
    {**tree, 'layers': {'kernel': kernel.reshape(16, 8)}},
    {**tree, 'layers': {'bias': kernel}},
    {**tree, 'layers': {'kernel': kernel.view(np.int32)}},
    {**tree, 'count': -tree['count']},
    {**tree, 'scale': np.float32(-3)},
    {name: leaf for name, leaf in tree.items() if name != 'empty'},
  ]
  found = {digest.tree_digest(other) for other in others}
  assert len(found) == len(others) and want not in found


def test_signs_of_zero_and_nan_are_bits_too():
  zeros = {'a': np.zeros(4, np.float32)}
  minus = {'a': -np.zeros(4, np.float32)}
  assert digest.tree_digest(zeros) != digest.tree_digest(minus)
  nan = {'a': np.full(4, np.nan, np.float32)}
  assert digest.tree_digest(nan) == digest.tree_digest(nan)


def test_recorded_digests_stay_readable():
  """The function is a format: its value, from the definition in numpy."""

  def mix(x):
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

  leaf = np.arange(6, dtype=np.float32).reshape(2, 3)
  place = np.arange(6, dtype=np.uint32)
  sums = [
    int(
      mix(leaf.reshape(-1).view(np.uint32) ^ mix(place + np.uint32(key))).sum()
    )
    % 2**32
    for key in (0x9E3779B9, 0x85EBCA6B)
  ]
  text = json.dumps([['a/b', [2, 3], 'float32', *sums]])
  want = hashlib.sha256(text.encode()).hexdigest()
  assert digest.tree_digest({'a': {'b': leaf}}) == want


def test_an_embedder_is_more_than_its_parameters():
  params = {'kernel': np.ones((2, 3), np.float32)}
  config = config_lib.Config()
  others = [
    config_lib.replace(config, pooling='mean'),
    config_lib.replace(config, model={'num_heads': 4}),
    config_lib.replace(config, model={'activation': 'gelu'}),
    config_lib.replace(config, model={'layer_norm_eps': 1e-6}),
    config_lib.replace(config, model={'projection_eps': 1e-6}),
  ]
  found = {digest.embedder_digest(params, other) for other in (config, *others)}
  assert len(found) == 1 + len(others)
  for same in (
    config_lib.replace(config, seed=7),
    config_lib.replace(config, model={'compute_dtype': 'bfloat16'}),
  ):
    assert digest.embedder_digest(params, same) in found
