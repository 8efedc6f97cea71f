"""The transformer against numpy, and what must hold of any of them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_bert
import pytest
from flax import nnx

from realm_jax import config as config_lib
from realm_jax.model import bert, parts


def backbone(config, params):
  return parts.bind('encoder', config, params).bert


@pytest.mark.parametrize('activation', ['gelu', 'gelu_tanh'])
def test_matches_numpy(config, text, make, activation):
  config = config_lib.replace(config, model={'activation': activation})
  params, tensors = make('encoder', config)
  x_BLD = jax.jit(lambda p: backbone(config, p)(*text))(params)
  for row in range(3):
    expected = numpy_bert.hidden(
      tensors, config.model, text[0][row], text[1][row]
    )
    np.testing.assert_allclose(x_BLD[row], expected, atol=2e-5)


def test_padding_changes_nothing(config, text, make):
  params, _ = make('encoder', config)
  module = backbone(config, params)
  long_BLD = module(*text)
  short_BLD = module(text[0][1:2, :5], text[1][1:2, :5])
  np.testing.assert_allclose(long_BLD[1:2, :5], short_BLD, atol=1e-5)


def test_padding_alone_is_finite(config, make):
  params, _ = make('encoder', config)
  nothing = np.zeros((2, 6), np.int32)

  def loss(params):
    return backbone(config, params)(nothing, nothing).sum()

  for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
    assert np.isfinite(leaf).all()


def test_scan_equals_a_loop_over_layers(config, text, make):
  params, _ = make('encoder', config)
  module = backbone(config, params)
  # Layers are taken by hand: parameters are different in every one.
  x_BLD = module.norm(
    module.word(text[0])
    + module.position(jnp.arange(13))[None]
    + module.segment(text[1])
  )
  graphdef, stacked = nnx.split(module.layers)
  for i in range(config.model.num_layers):
    state = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
    x_BLD = nnx.merge(graphdef, state)(x_BLD, text[0] != 0, None)
  np.testing.assert_allclose(module(*text), x_BLD, atol=1e-5)


def test_program_does_not_grow_with_layers(config, text):
  def count(num_layers):
    deep = config_lib.replace(config, model={'num_layers': num_layers})
    params = parts.init_part('encoder', deep, jax.random.key(0))
    jaxpr = jax.make_jaxpr(lambda p: backbone(deep, p)(*text))(params)
    return len(str(jaxpr).splitlines())

  assert count(2) == count(9)


def test_layers_start_different(config):
  params = parts.init_part('encoder', config, jax.random.key(0))
  kernel = params['bert']['layers']['query']['kernel']
  assert abs(np.corrcoef(kernel[0].ravel(), kernel[1].ravel())[0, 1]) < 0.2
  embedding = params['bert']['word']['embedding']
  assert 0.015 < embedding.std() < 0.022
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_remat_changes_no_gradient(config, text, make):
  params, _ = make('encoder', config)

  def gradient(remat):
    kind = config_lib.replace(config, model={'remat': remat})

    def loss(params):
      x_BLD = backbone(kind, params)(*text, key=jax.random.key(1))
      return (x_BLD**2).sum(where=text[0][:, :, None] != 0)

    return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

  expected = gradient('none')
  for remat in ('dots', 'full'):
    for a, b in zip(expected, gradient(remat), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3)


def test_remat_saves_memory(config):
  token_BL = np.ones((4, 128), np.int32)

  def temp_bytes(remat):
    kind = config_lib.replace(
      config, model={'remat': remat, 'num_layers': 6, 'max_positions': 128}
    )
    params = jax.eval_shape(
      lambda: parts.init_part('encoder', kind, jax.random.key(0))
    )

    def loss(params):
      return backbone(kind, params)(token_BL, 0 * token_BL).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  none, dots, full = map(temp_bytes, ('none', 'dots', 'full'))
  # Of a layer: scores of 4 heads of 128 x 128; 4 x 24 + 40 of 24 numbers.
  assert full < 0.8 * dots and dots < 0.5 * none


def test_cudnn_attention_is_used_on_nvidia_gpus_alone(
  config, text, make, monkeypatch
):
  half = {'compute_dtype': 'bfloat16', 'num_heads': 3}
  plain = config_lib.replace(config, model=half)
  flash = config_lib.replace(config, model=half | {'attention': 'cudnn'})
  params, _ = make('encoder', plain)

  def loss(config, length=12):
    def loss(params):
      x_BLD = backbone(config, params)(*(x[:, :length] for x in text))
      return x_BLD.astype(jnp.float32).sum()

    return loss

  assert loss(plain)(params) == loss(flash)(params)
  # Traced as on a GPU, then lowered for one: that it is called, not what it
  # gives.
  from jax._src.cudnn import fused_attention_stablehlo

  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(
    fused_attention_stablehlo, 'check_cudnn_version', lambda: 91000
  )

  def lowered(length):
    gradient = jax.jit(jax.grad(loss(flash, length)))
    return gradient.trace(params).lower(lowering_platforms=('cuda',)).as_text()

  assert '__cudnn$fmhaSoftmaxBackward' in lowered(12)
  assert '__cudnn' not in lowered(13)


@pytest.mark.parametrize(
  'dtype, message',
  [('float32', 'bfloat16, not float32'), ('bfloat16', 'multiple of 8, not 6')],
)
def test_cudnn_attention_says_what_it_needs(config, dtype, message):
  keys = {'attention': 'cudnn', 'compute_dtype': dtype}
  with pytest.raises(ValueError, match=f'model.attention: cudnn .*{message}'):
    config_lib.replace(config, model=keys)


def test_dropout_drops_at_its_rate():
  x = jnp.ones(100_000)
  y = bert.dropout(x, 0.25, jax.random.key(0))
  assert abs((y == 0).mean() - 0.25) < 0.01
  np.testing.assert_allclose(y[y != 0], 1 / 0.75)
  assert bert.dropout(x, 0.25, None) is x
  assert bert.dropout(x, 0.0, jax.random.key(0)) is x


def test_dropout_differs_by_key_and_layer(config, text, make):
  params, _ = make('encoder', config)
  # Layers that are all alike: only their keys can make them differ.
  params['bert']['layers'] = jax.tree.map(
    lambda leaf: np.repeat(leaf[:1], len(leaf), axis=0),
    params['bert']['layers'],
  )
  module = backbone(config, params)
  first = module(*text, key=jax.random.key(0))
  assert (first == module(*text, key=jax.random.key(0))).all()
  assert abs(first - module(*text, key=jax.random.key(1))).max() > 0.01
  graphdef, stacked = nnx.split(module.layers)
  keys = jax.random.split(
    jax.random.split(jax.random.key(0))[1], config.model.num_layers
  )
  layer = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], stacked))
  x_BLD = jnp.ones((3, 13, config.model.hidden_size))
  real_BL = text[0] != 0
  outputs = [layer(x_BLD, real_BL, key) for key in keys]
  assert abs(outputs[0] - outputs[1]).max() > 0.01
  assert abs(outputs[1] - outputs[2]).max() > 0.01


def test_bfloat16_is_close(config, text, make):
  params, _ = make('encoder', config)
  half = config_lib.replace(config, model={'compute_dtype': 'bfloat16'})
  exact = backbone(config, params)(*text)
  x_BLD = backbone(half, params)(*text)
  assert x_BLD.dtype == jnp.bfloat16
  error = abs(exact - x_BLD.astype(jnp.float32))
  assert 0 < error.mean() < 0.02


def test_too_long_a_text_is_refused(config, make):
  params, _ = make('encoder', config)
  text = np.ones((1, 21), np.int32)
  with pytest.raises(ValueError, match=r'model\.max_positions: 20.* 21'):
    backbone(config, params)(text, text)
