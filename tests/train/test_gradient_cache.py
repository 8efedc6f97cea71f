"""Gradient caching against the gradient of the whole batch at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from realm_jax import config as config_lib
from realm_jax.config import MeshConfig
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train import losses
from realm_jax.train.gradient_cache import cached_gradient
from realm_jax.train.ict import TRAINED, ict_step
from realm_jax.train.optimizer import make_optimizer
from realm_jax.train.run import train
from realm_jax.train.state import TrainState
from realm_jax.workdir import files

BATCH, SEP = 32, 3


def make_config(**changes):
  model = {
    **small_runs.SIZES,
    'num_layers': 2,
    'initializer_range': 0.2,
  }
  config = config_lib.from_dict({'batch_size': BATCH, 'model': model})
  return config_lib.replace(config, **changes)


def make_params(config):
  """Shared embedders: their gradient comes from both sides."""
  key = jax.random.key(0)
  return {'document_embedder': parts.init_part('embedder', config, key)}


def make_batch(block_length=24):
  rng = np.random.default_rng(0)
  shapes = {'query_BL': (BATCH, 8), 'block_BL': (BATCH, block_length)}
  return {
    name: rng.integers(5, 200, shape).astype(np.int32)
    for name, shape in shapes.items()
  }


def make_embed(config):
  def embed(params, batch, key):
    query_key, block_key = jax.random.split(key)
    embedder = parts.bind('embedder', config, params['document_embedder'])
    return (
      embedder(batch['query_BL'], sep_id=SEP, key=query_key),
      embedder(batch['block_BL'], sep_id=SEP, key=block_key),
    )

  return embed


def plain_gradient(embed, params, batch, key, count):
  """With the dropout of each part, but the loss's activations all at once."""

  def loss_fn(params):
    embedded = [
      embed(
        params,
        {name: np.split(x, count)[i] for name, x in batch.items()},
        part_key,
      )
      for i, part_key in enumerate(jax.random.split(key, count))
    ]
    query_BE, block_BE = map(jnp.concatenate, zip(*embedded, strict=True))
    return losses.ict_loss(query_BE, block_BE, 1.0)

  return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)


@pytest.mark.parametrize(
  'dropout, shapes', [(0.0, [(8, 1)]), (0.3, [(1, 1), (4, 2)])]
)
def test_is_the_gradient_of_the_whole_batch(
  dropout, shapes, compiled_once, monkeypatch
):
  # Small parameters are split too, as large ones are.
  monkeypatch.setattr(mesh_lib, '_MIN_SPLIT_SIZE', 64)
  config = make_config(model={'dropout': dropout})
  embed, batch = make_embed(config), make_batch()
  params = make_params(config)
  key, count = jax.random.key(5, impl='rbg'), 2
  (loss, metrics), grads = plain_gradient(embed, params, batch, key, count)
  largest = max(abs(leaf).max() for leaf in jax.tree.leaves(grads))
  cached = functools.partial(
    cached_gradient, embed, lambda embedded: losses.ict_loss(*embedded, 1.0)
  )
  for shape in shapes:
    mesh = mesh_lib.make_mesh(
      MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]]
    )
    with jax.set_mesh(mesh):
      got = jax.jit(cached, static_argnums=3)(
        jax.device_put(params, mesh_lib.tree_shardings(params, mesh)),
        mesh_lib.put_batch(batch, mesh),
        key,
        count,
      )
    np.testing.assert_allclose(got.loss, loss, rtol=1e-5)
    assert float(got.metrics['ict_accuracy']) == metrics['ict_accuracy']
    for a, b in zip(
      jax.tree.leaves(got.grads), jax.tree.leaves(grads), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest)


def test_memory_falls_as_parts_grow():
  def temp_bytes(count):
    config = make_config(micro_batches=count)
    state = jax.eval_shape(
      lambda: TrainState.create(
        make_params(config), TRAINED, make_optimizer(config)
      )
    )
    step = functools.partial(ict_step, config=config, sep_id=SEP)
    lowered = jax.jit(step).lower(state, make_batch(64), jax.random.key(0))
    return lowered.compile().memory_analysis().temp_size_in_bytes

  whole, two, eight = map(temp_bytes, (1, 2, 8))
  assert two < 0.7 * whole and eight < 0.5 * two


def test_ict_trains_in_micro_batches(tmp_path, compiled_once):
  corpus = small_runs.make_corpus(tmp_path)
  seen = []
  for count in (1, 2):
    config = small_runs.make_config(
      corpus,
      batch_size=16,
      micro_batches=count,
      num_steps=2,
      model={'dropout': 0.0, 'initializer_range': 0.2},
    )
    path = tmp_path / str(count)
    assert train('ict', config, str(path)) == 0
    lines = files.read_lines(path / 'metrics.jsonl')
    seen.append([(line['loss'], line['gradient_norm']) for line in lines])
  np.testing.assert_allclose(seen[0], seen[1], rtol=1e-3)
