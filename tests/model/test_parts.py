"""Embedder, encoder and reader against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_bert
import pytest

from realm_jax import config as config_lib
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib

SEP = 3


def test_segments_begin_after_the_first_sep():
  token = np.array([[1, 7, SEP, 8, SEP, 0], [1, SEP, SEP, 0, 0, 0]])
  assert parts.segments(token, SEP).tolist() == [
    [0, 0, 0, 1, 1, 0],
    [0, 0, 1, 0, 0, 0],
  ]


@pytest.mark.parametrize('pooling', ['cls', 'mean'])
def test_embedder_matches_numpy(config, text, make, pooling):
  config = config_lib.replace(config, pooling=pooling)
  params, tensors = make('embedder', config)
  token = text[0].copy()
  token[1:, 3] = SEP  # segments follow from it, as in `text`
  vector_BE = jax.jit(
    lambda p: parts.bind('embedder', config, p)(token, sep_id=SEP)
  )(params)
  assert vector_BE.dtype == jnp.float32
  for row in range(3):
    x = numpy_bert.hidden(tensors, config.model, token[row], text[1][row])
    if pooling == 'cls':
      x = np.tanh(numpy_bert.linear(tensors, 'pooler.dense', x[0]))
    else:
      x = x[token[row] != 0].mean(0)
    x = x @ np.asarray(params['projection']['kernel'])
    np.testing.assert_allclose(
      vector_BE[row], numpy_bert.normalise(x, 1e-12), atol=1e-4
    )


def test_mean_pooling_has_no_pooler(config):
  config = config_lib.replace(config, pooling='mean')
  params = parts.init_part('embedder', config, jax.random.key(0))
  assert set(params) == {'bert', 'projection', 'norm'}
  empty = np.zeros((1, 5), np.int32)
  module = parts.bind('embedder', config, params)
  assert np.isfinite(module(empty, sep_id=SEP)).all()


def test_encoder_matches_numpy(config, text, make):
  params, tensors = make('encoder', config)
  position = np.array([[0, 1], [4, 2], [12, 12]])
  logit_BMV = jax.jit(
    lambda p: parts.bind('encoder', config, p)(*text, position)
  )(params)
  assert logit_BMV.dtype == jnp.float32
  for row in range(3):
    x = numpy_bert.hidden(tensors, config.model, text[0][row], text[1][row])
    expected = numpy_bert.mlm_logits(tensors, config.model, x[position[row]])
    np.testing.assert_allclose(logit_BMV[row], expected, atol=1e-4)


def test_reader_matches_every_span_by_hand(config, text, make):
  params, tensors = make('reader', config)
  start, end = np.array([1, 3, 4]), np.array([1, 5, 12])
  score_BLW = jax.jit(
    lambda p: parts.bind('reader', config, p)(*text, start, end)
  )(params)
  kernel = np.asarray(params['span']['kernel'])
  output = np.asarray(params['output']['kernel'])[:, 0]
  expected = np.full((3, 13, 4), parts.NO_SPAN)
  for row in range(3):
    x = numpy_bert.hidden(tensors, config.model, text[0][row], text[1][row])
    for i in range(start[row], end[row]):
      for j in range(i, min(i + 4, end[row])):
        span = np.maximum(x[i] @ kernel[:, :10] + x[j] @ kernel[:, 10:], 0)
        score = numpy_bert.normalise(span, config.model.reader_eps) @ output
        expected[row, i, j - i] = score
  assert score_BLW.dtype == jnp.float32
  np.testing.assert_allclose(score_BLW, expected, atol=1e-4)
  assert (np.asarray(score_BLW[0]) == parts.NO_SPAN).all()


def test_no_span_at_all_has_a_finite_gradient(config, text, make):
  params, _ = make('reader', config)
  start = np.array([1, 3, 4])

  def loss(params):
    score = parts.bind('reader', config, params)(*text, start, start)
    return jax.nn.logsumexp(score, axis=(1, 2)).sum()

  for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
    assert np.isfinite(leaf).all()


@pytest.mark.parametrize('name', ['embedder', 'encoder', 'reader'])
def test_gradient_reaches_every_parameter(config, text, make, name):
  params, _ = make(name, config)
  calls = {
    'embedder': lambda part: part(text[0], sep_id=int(text[0][2, 5])),
    'encoder': lambda part: part(*text, np.array([[1], [2], [3]])),
    'reader': lambda part: part(
      *text, np.array([1, 1, 1]), np.array([2, 4, 9])
    ),
  }
  rng = np.random.default_rng(0)

  def loss(params):
    y = calls[name](parts.bind(name, config, params))
    # A sum would be blind to what moves all scores alike.
    weight = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    return (y * jnp.where(y == parts.NO_SPAN, 0, weight)).sum()

  gradient = jax.jit(jax.grad(loss))(params)
  assert jax.tree.structure(gradient) == jax.tree.structure(params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.isfinite(leaf).all()
    # Adding to all keys alike moves no softmax: this one is 0 by its nature.
    if jax.tree_util.keystr(path) != "['bert']['layers']['key']['bias']":
      assert abs(leaf).max() > 1e-7, jax.tree_util.keystr(path)


@pytest.mark.parametrize('name', ['embedder', 'encoder', 'reader'])
def test_bfloat16_is_close(config, text, make, name):
  params, _ = make(name, config)
  half = config_lib.replace(config, model={'compute_dtype': 'bfloat16'})

  def run(config):
    part = parts.bind(name, config, params)
    if name == 'embedder':
      return part(text[0], sep_id=SEP)
    if name == 'encoder':
      return part(*text, np.array([[1], [2], [3]]))
    score = part(*text, np.array([1, 1, 1]), np.array([2, 4, 9]))
    return jnp.where(score == parts.NO_SPAN, 0, score)

  exact, rough = run(config), run(half)
  assert rough.dtype == jnp.float32
  scale = float(jnp.std(exact))
  assert 0 < float(abs(exact - rough).mean()) < 0.1 * scale


def test_bind_twice_keeps_both(config, text, make):
  first, _ = make('embedder', config, seed=0)
  second, _ = make('embedder', config, seed=1)
  one = parts.bind('embedder', config, first)
  before = one(text[0], sep_id=SEP)
  two = parts.bind('embedder', config, second)
  assert abs(before - two(text[0], sep_id=SEP)).max() > 0.1
  assert (one(text[0], sep_id=SEP) == before).all()


def test_init_is_the_same_under_jit_and_by_key(config):
  plain = parts.init_part('reader', config, jax.random.key(5))
  jitted = jax.jit(lambda key: parts.init_part('reader', config, key))(
    jax.random.key(5)
  )
  other = parts.init_part('reader', config, jax.random.key(6))
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(jitted), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  assert (plain['span']['kernel'] != other['span']['kernel']).any()


def test_sharded_equals_one_device(config, text, make):
  params, _ = make('reader', config)
  token, segment = (np.tile(x[1:], (8, 1)) for x in text)
  start, end = np.full(16, 1), np.full(16, 5)

  def loss(params, token, segment, start, end):
    score = parts.bind('reader', config, params)(token, segment, start, end)
    return jax.nn.logsumexp(score, axis=(1, 2)).mean()

  run = jax.value_and_grad(loss)
  one = jax.jit(run)(params, token, segment, start, end)
  mesh = mesh_lib.make_mesh(config_lib.MeshConfig(model=2))
  with jax.set_mesh(mesh):
    # Kernels are split over both axes, as large models have it.
    split = jax.tree.map(
      lambda leaf: jax.device_put(
        leaf, jax.P(None, 'data', 'model') if leaf.ndim == 3 else jax.P()
      ),
      params,
    )
    batch = jax.device_put((token, segment, start, end), jax.P('data'))
    many = jax.jit(run)(split, *batch)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_unknown_part_is_refused(config):
  with pytest.raises(ValueError, match=r"part 'ranker': choose from"):
    parts.init_part('ranker', config, jax.random.key(0))
