"""The steps as programs: sharded equals single, one compilation, donation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax import config as config_lib
from realm_jax.config import MeshConfig
from realm_jax.data.labels import NO_ROW
from realm_jax.index.search import Index
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train import pretrain
from realm_jax.train.finetune import TRAINED as FINETUNED
from realm_jax.train.finetune import Reading, finetune_loss, finetune_step
from realm_jax.train.ict import ict_step
from realm_jax.train.optimizer import make_optimizer
from realm_jax.train.pretrain import TRAINED, holds, pretrain_step
from realm_jax.train.program import jit_step
from realm_jax.train.state import TrainState

CLS, SEP, MASK, BLOCKS, LENGTH = 2, 3, 4, 37, 12
CONFIG = config_lib.from_dict(
  {
    'batch_size': 8,
    'num_candidates': 4,
    'query_length': 8,
    'reader_length': 16,
    'max_masks': 2,
    'retriever_beam': 9,
    'reader_beam': 3,
    'optimizer': {'learning_rate': 1e-3},
    'index': {'rows_dtype': 'float32', 'max_excluded': 2, 'search_block': 4},
    'model': {
      'vocab_size': 50,
      'hidden_size': 16,
      'num_layers': 2,
      'num_heads': 2,
      'mlp_size': 32,
      'max_positions': 32,
      'retrieval_size': 8,
      'span_hidden_size': 8,
      'max_span_width': 3,
      'dropout': 0.0,
      'initializer_range': 0.2,
    },
  }
)


def _documents(rng):
  tokens = np.zeros((BLOCKS, LENGTH), np.uint16)
  for row in tokens:
    body = rng.integers(2, LENGTH - 4)
    row[:2] = CLS, rng.integers(5, 50)
    row[2] = SEP
    row[3 : 3 + body] = rng.integers(5, 50, body)
    row[3 + body] = SEP
  return tokens


def _index(mesh, config=CONFIG):
  rng = np.random.default_rng(0)
  tokens = _documents(rng)
  rows = rng.normal(size=(BLOCKS, config.model.retrieval_size))
  rows = rows.astype(np.float32)

  def put(values, on_host=False):
    return mesh_lib.put_rows(
      lambda a, b: values[a:b],
      BLOCKS,
      values.shape[1:],
      values.dtype,
      mesh,
      on_host=on_host,
    )

  valid = np.ones(BLOCKS, bool)
  on_host = config.index.token_table == 'host'
  return Index(put(rows), put(valid), put(tokens, on_host), block=4)


def _pretrain_batch():
  rng = np.random.default_rng(1)
  query = np.zeros((8, 8), np.int32)
  query[:, 0], query[:, 6] = CLS, SEP
  query[:, 1:6] = rng.integers(5, 50, (8, 5))
  query[:, 2] = MASK
  return {
    'query_BL': query,
    'position_BM': np.tile([2, 0], (8, 1)).astype(np.int32),
    'target_BM': rng.integers(5, 50, (8, 2)).astype(np.int32),
    'weight_BM': np.tile([1.0, 0.0], (8, 1)).astype(np.float32),
    'exclude_BX': np.tile([3, -1], (8, 1)).astype(np.int32),
  }


def _finetune_batch():
  batch = _pretrain_batch()
  rng = np.random.default_rng(2)
  rows = np.sort(
    rng.permuted(np.tile(np.arange(BLOCKS), (8, 1)), axis=1)[:, :9]
  )
  gold = np.full((8, 12), 2**31 - 1, np.int32)
  gold[:, :9] = rows
  start = np.full((8, 12, 2), -1, np.int32)
  start[:, :9, 0] = 0
  end = np.where(start >= 0, start + 1, -1)
  return {
    'query_BL': batch['query_BL'],
    'gold_row_BC': gold,
    'gold_start_BCS': start,
    'gold_end_BCS': end.astype(np.int32),
  }


def _params(config, names):
  keys = jax.random.split(jax.random.key(0), 3)
  params = {'document_embedder': parts.init_part('embedder', config, keys[0])}
  if 'query_embedder' in names:
    params['query_embedder'] = parts.init_part('embedder', config, keys[1])
  last = 'reader' if 'reader' in names else 'encoder'
  params[last] = parts.init_part(last, config, keys[2])
  return params


def _run(step, params, trained, batch, shape, config=CONFIG, steps=3):
  mesh = mesh_lib.make_mesh(
    MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]]
  )
  state = TrainState.create(
    params, tuple(p for p in trained if p in params), make_optimizer(config)
  )
  state = jax.device_put(state, mesh_lib.tree_shardings(state, mesh))
  batch = mesh_lib.put_batch(batch, mesh)
  index = _index(mesh, config)
  jitted = jit_step(step, mesh, state, index)
  history = []
  with jax.set_mesh(mesh):
    for number in range(steps):
      donated = index.rows_NE
      state, index, metrics = jitted(
        state, batch, index, jax.random.key(number)
      )
      assert donated.is_deleted()
      metrics.pop('sample', None)
      history.append({name: float(v) for name, v in metrics.items()})
  assert jitted._cache_size() == 1
  return state, history


_STEPS = {
  'pretrain': (
    functools.partial(pretrain_step, cls_id=CLS, sep_id=SEP),
    TRAINED,
    _pretrain_batch,
  ),
  'finetune': (
    functools.partial(finetune_step, sep_id=SEP),
    FINETUNED,
    _finetune_batch,
  ),
}


def _three_steps(name, shape):
  step, trained, make = _STEPS[name]
  step = functools.partial(step, config=CONFIG)
  params = _params(CONFIG, trained if name == 'finetune' else ('encoder',))
  return _run(step, params, trained, make(), shape)


@functools.cache
def _on_one_device(name):
  """What three steps report on a mesh of one device."""
  return _three_steps(name, (1, 1))[1]


@pytest.mark.parametrize('name', _STEPS)
@pytest.mark.parametrize(
  'shape, shards',
  [((8, 1), 8), ((2, 4), 8), ((8, 1), 4)],  # the last: two groups
)
def test_sharded_equals_single(name, shape, shards, monkeypatch):
  # Small parameters are split too, so that the test sees FSDP.
  monkeypatch.setattr(mesh_lib, '_MIN_SPLIT_SIZE', 64)
  monkeypatch.setattr(mesh_lib, '_MOST_SHARDS', shards)
  one = _on_one_device(name)
  state, many = _three_steps(name, shape)
  layers = state.params['document_embedder']['bert']['layers']
  kernel = layers['mlp_in']['kernel']
  split = min(shape[0], shards) * shape[1]
  assert kernel.addressable_shards[0].data.size == kernel.size // split
  assert one[-1]['loss'] < one[0]['loss']
  for a, b in zip(one, many, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_allclose(a[key], b[key], rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
  'name, marginal',
  [('pretrain', 'sequence'), ('pretrain', 'token'), ('finetune', 'sequence')],
)
def test_micro_batches_add_up_to_the_batch(name, marginal):
  step, trained, make = _STEPS[name]
  batch = make()
  if name == 'pretrain':  # parts with different numbers of masked tokens
    batch['weight_BM'][:3, 1] = 1.0
  ends = []
  for count in (1, 4):
    config = config_lib.replace(CONFIG, micro_batches=count, marginal=marginal)
    params = _params(config, trained if name == 'finetune' else ('encoder',))
    state, history = _run(
      functools.partial(step, config=config),
      params,
      trained,
      batch,
      (2, 1),
      config,
    )
    ends.append((history, jax.device_get(state.params)))
  (whole, params), (parts_, params_) = ends
  for a, b in zip(whole, parts_, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_allclose(a[key], b[key], rtol=2e-4, err_msg=key)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params, params_
  )


@pytest.mark.parametrize(
  'name, micro_batches', [('pretrain', 2), ('finetune', 1)]
)
def test_token_ids_may_stay_with_the_hosts(name, micro_batches):
  """The same steps, bit for bit, in one program that leaves the table there."""
  step, trained, make = _STEPS[name]
  histories = []
  for place in ('device', 'host'):
    config = config_lib.replace(
      CONFIG, micro_batches=micro_batches, index={'token_table': place}
    )
    params = _params(config, trained if name == 'finetune' else ('encoder',))
    step_ = functools.partial(step, config=config)
    _, history = _run(step_, params, trained, make(), (4, 1), config, steps=2)
    histories.append(history)
  assert histories[0] == histories[1]


def test_rows_that_a_full_list_of_gold_rows_does_not_reach_are_left_out():
  """They may hold the answer as well."""
  rng = np.random.default_rng(0)
  score_BK = jnp.asarray(rng.normal(size=(1, 4)), jnp.float32)
  span_BRJW = jnp.asarray(rng.normal(size=(1, 3, 5, 2)), jnp.float32)

  def loss(gold, rows):
    row_BK = jnp.array([rows])
    found_BR = row_BK[:, :3] >= 0
    valid_BRJW = jnp.broadcast_to(found_BR[..., None, None], span_BRJW.shape)
    reading = Reading(
      score_BK, row_BK, span_BRJW, valid_BRJW, jnp.zeros((1, 3), jnp.int32)
    )
    place_BCS = jnp.where(jnp.array([gold])[..., None] < NO_ROW, 1, -1)
    batch = {
      'gold_row_BC': jnp.array([gold]),
      'gold_start_BCS': place_BCS,
      'gold_end_BCS': place_BCS,
    }
    return float(finetune_loss(reading, batch, 1)[0])

  full, not_full = [2, 6], [2, NO_ROW]
  assert loss(full, [2, 9, 5, 7]) == loss(full, [2, -1, 5, -1])
  assert loss(not_full, [2, 9, 5, 7]) == loss(not_full, [2, 8, 5, 7])
  assert loss(not_full, [2, 9, 5, 7]) > loss(full, [2, 9, 5, 7]) > 0


def test_ict_negatives_cross_devices():
  rng = np.random.default_rng(0)
  batch = {
    'query_BL': _pretrain_batch()['query_BL'],
    'block_BL': _documents(rng)[:8].astype(np.int32),
  }

  def run(shape):
    mesh = mesh_lib.make_mesh(
      MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]]
    )
    params = {
      'document_embedder': parts.init_part(
        'embedder', CONFIG, jax.random.key(0)
      )
    }
    state = TrainState.create(
      params, ('document_embedder',), make_optimizer(CONFIG)
    )
    state = jax.device_put(state, mesh_lib.tree_shardings(state, mesh))
    step = jax.jit(functools.partial(ict_step, config=CONFIG, sep_id=SEP))
    with jax.set_mesh(mesh):
      return step(state, mesh_lib.put_batch(batch, mesh), jax.random.key(0))[1]

  metrics_1 = run((1, 1))
  metrics_8 = run((8, 1))
  # A softmax over eight blocks, not over one device's one.
  assert metrics_1['loss'] > 0.1
  np.testing.assert_allclose(metrics_1['loss'], metrics_8['loss'], rtol=1e-5)
  # Gradients flow through the other devices' blocks.
  np.testing.assert_allclose(
    metrics_1['gradient_norm'], metrics_8['gradient_norm'], rtol=1e-4
  )


def test_retriever_is_frozen_for_the_first_steps():
  config = config_lib.replace(CONFIG, freeze_retriever_steps=2)
  step = functools.partial(pretrain_step, config=config, cls_id=CLS, sep_id=SEP)
  params = _params(config, ('encoder',))
  before = jax.device_get(params)

  def moved(steps):
    state, _ = _run(
      step,
      jax.tree.map(jnp.copy, params),
      TRAINED,
      _pretrain_batch(),
      (1, 1),
      config,
      steps,
    )
    return {
      part: any(
        jax.tree.leaves(
          jax.tree.map(lambda a, b: bool((a != b).any()), tree, before[part])
        )
      )
      for part, tree in jax.device_get(state.params).items()
    }

  assert moved(2) == {'document_embedder': False, 'encoder': True}
  assert moved(3) == {'document_embedder': True, 'encoder': True}


def test_retriever_warms_up_after_the_thaw():
  config = config_lib.replace(
    CONFIG,
    freeze_retriever_steps=3,
    optimizer={'warmup_steps': 2, 'retriever_learning_rate_scale': 0.5},
  )
  params = {
    'document_embedder': {'kernel': jnp.ones((2, 2))},
    'encoder': {'kernel': jnp.ones((2, 2))},
  }
  tx = make_optimizer(config)
  state, ratios = tx.init(params), []
  for _ in range(6):
    updates, state = tx.update(params, state, params)
    moved = [updates[part]['kernel'][0, 0] for part in params]
    ratios.append(float(moved[0] / moved[1]) if moved[1] else 0.0)
  assert ratios == [0.0, 0.0, 0.0, 0.25, 0.5, 0.5]


def test_excluded_blocks_are_no_candidates():
  """Excluding all blocks but some leaves just those, and the null document."""
  batch = _pretrain_batch()
  config = config_lib.replace(
    CONFIG, index={'max_excluded': BLOCKS - 1}, num_candidates=4
  )
  batch['exclude_BX'] = np.tile(np.arange(1, BLOCKS), (8, 1)).astype(np.int32)
  step = functools.partial(pretrain_step, config=config, cls_id=CLS, sep_id=SEP)
  _, history = _run(
    step, _params(config, ('encoder',)), TRAINED, batch, (1, 1), config, 1
  )
  assert history[0]['trivial_exclusion_rate'] == 1.0
  # Two candidates are left: the entropy is at most log 2.
  assert history[0]['retrieval_entropy'] <= np.log(2) + 1e-6


def test_documents_that_hold_what_is_masked():
  title, sep = 8, 2
  document = np.array(
    [
      [
        [1, title, sep, 5, 6, 7, sep],
        [1, 5, 6, sep, 7, 6, sep],  # in its title
        [1, sep, 5, 6, sep, 0, 0],
        [1, sep, sep, 0, 0, 0, 0],
      ]
    ]
    * 3
  )
  target = np.array([[5, 6, 0], [6, 0, 0], [0, 0, 0]])
  weight = np.array([[1.0, 1, 0], [1, 0, 0], [0, 0, 0]])
  np.testing.assert_array_equal(
    holds(document, target, weight, sep),
    [[True, False, True, False], [True, True, True, False], [False] * 4],
  )


def _pretrain_loss(config):
  """The loss of the batch and its metrics, of one device."""
  batch = {name: jnp.asarray(x) for name, x in _pretrain_batch().items()}
  params = _params(config, ('encoder',))
  mesh = mesh_lib.make_mesh(MeshConfig(1, 1), jax.devices()[:1])
  loss = functools.partial(
    pretrain.pretrain_loss,
    total=8.0,
    key=None,
    config=config,
    cls_id=CLS,
    sep_id=SEP,
  )
  with jax.set_mesh(mesh):
    return jax.jit(loss)(params, batch, index=_index(mesh, config))


def test_utility_of_documents_that_hold_what_is_masked(monkeypatch):
  def metrics(*held):
    hold_BK = jnp.broadcast_to(jnp.isin(jnp.arange(4), jnp.array(held)), (8, 4))
    monkeypatch.setattr(pretrain, 'holds', lambda *_: hold_BK)
    return _pretrain_loss(config_lib.replace(CONFIG, masking='salient'))[1]

  none, third, all_of_them = metrics(), metrics(2), metrics(0, 1, 2, 3)
  assert none['target_retrieved'] == none['target_utility'].value() == 0
  assert third['target_retrieved'] == all_of_them['target_retrieved'] == 1
  log_prob_BK = third['retrieved']['log_prob_BK']
  np.testing.assert_allclose(
    third['target_utility'].value(),
    (log_prob_BK[:, 2] - log_prob_BK[:, 0]).mean(),
    rtol=1e-5,
  )
  utility = all_of_them['retrieval_utility'].value()
  assert all_of_them['target_utility'].value() == utility != 0


def test_null_bias_raises_the_null_document_alone():
  def log_prior(bias):
    config = config_lib.replace(CONFIG, null_bias=bias, score_temperature=2.0)
    return np.asarray(_pretrain_loss(config)[1]['retrieved']['log_prior_BK'])

  plain_BK, raised_BK = log_prior(0.0), log_prior(1.5)
  odds_BK = (raised_BK - raised_BK[:, 1:2]) - (plain_BK - plain_BK[:, 1:2])
  np.testing.assert_allclose(
    odds_BK, np.tile([1.5, 0, 0, 0], (8, 1)), atol=1e-5
  )


def test_adam_without_bias_correction():
  config = config_lib.replace(
    CONFIG,
    num_steps=10**9,
    optimizer={'learning_rate': 0.1, 'weight_decay': 0.5, 'clip_norm': 1e9},
  )
  tx = make_optimizer(config)
  params = {'encoder': {'kernel': jnp.ones(2), 'bias': jnp.ones(2)}}
  grads = {'encoder': {'kernel': jnp.full(2, 3.0), 'bias': jnp.full(2, 3.0)}}
  updates, _ = tx.update(grads, tx.init(params), params)
  adam = 0.1 * 3 / (np.sqrt(0.001 * 9) + 1e-6)
  bias, kernel = updates['encoder']['bias'], updates['encoder']['kernel']
  np.testing.assert_allclose(bias, -0.1 * adam, rtol=1e-5)
  np.testing.assert_allclose(kernel, -0.1 * (adam + 0.5), rtol=1e-5)
