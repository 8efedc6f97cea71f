"""BERT, as a stack of layers that runs in one scan.

Parameters are float32; matrix products run in `config.compute_dtype`;
layer norms, softmax and residual sums run in float32. Padding is token id 0.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from realm_jax.config import ModelConfig
from realm_jax.model.dropout import dropout
from realm_jax.parallel.mesh import split_batch

NUM_SEGMENTS = 2
# What a layer keeps for the backward pass beside its input. `dots`: products
# with kernels, the dear part; attention has batch axes and is recomputed.
_SAVED = {
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def linear(
  config: ModelConfig,
  size_in: int,
  size_out: int,
  rngs: nnx.Rngs,
  dtype: str | None = None,
) -> nnx.Linear:
  """A dense layer, initialised as BERT does; `dtype`: not the compute dtype."""
  return nnx.Linear(
    size_in,
    size_out,
    kernel_init=nnx.initializers.truncated_normal(config.initializer_range),
    dtype=jnp.dtype(dtype or config.compute_dtype),
    rngs=rngs,
  )


def dense(layer: nnx.Linear, x: jax.Array) -> jax.Array:
  """Applies a dense layer to the last axis, as one matrix product.

  Of three axes the CPU backend makes a slow gradient of the kernel: 5.6 ms
  instead of 1.0 for [128, 64, 64] times [64, 128] on two cores.
  """
  y = layer(x.reshape(-1, x.shape[-1]))
  return y.reshape(*x.shape[:-1], y.shape[-1])


def layer_norm(size: int, eps: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
  """A float32 layer norm whose variance is exact at tiny `eps`."""
  # The fast variance, E[x^2] - E[x]^2, loses parity at eps 1e-12.
  return nnx.LayerNorm(
    size,
    epsilon=eps,
    dtype=jnp.float32,
    use_fast_variance=False,
    rngs=rngs,
  )


def activate(config: ModelConfig, x: jax.Array) -> jax.Array:
  return jax.nn.gelu(x, approximate=config.activation == 'gelu_tanh')


def attend(
  config: ModelConfig,
  query_BLHA: jax.Array,
  key_BLHA: jax.Array,
  value_BLHA: jax.Array,
  real_BL: jax.Array,
) -> jax.Array:
  """Every position, padding too, sees the real ones: [B, L, H, A].

  `model.attention` cudnn is for GPUs of NVIDIA, and takes what is real to
  come before the padding; on other devices it is as xla. A text of padding
  alone gives numbers of no meaning, but finite ones.
  """
  # What is left to JAX (`implementation=None`) is XLA's on every device.
  # cuDNN's gradient refuses odd lengths: the null document has 3 wordpieces.
  even = query_BLHA.shape[1] % 2 == 0
  if config.attention == 'cudnn' and even and jax.default_backend() == 'gpu':
    length_B = jnp.maximum(real_BL.sum(-1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
      query_BLHA,
      key_BLHA,
      value_BLHA,
      key_value_seq_lengths=length_B,
      implementation='cudnn',
    )
  return jax.nn.dot_product_attention(
    query_BLHA,
    key_BLHA,
    value_BLHA,
    mask=real_BL[:, None, None, :],
    implementation='xla',
  )


class Layer(nnx.Module):
  """One transformer layer: self-attention and an MLP, norms after the sums."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    size = config.hidden_size
    self.query = linear(config, size, size, rngs)
    self.key = linear(config, size, size, rngs)
    self.value = linear(config, size, size, rngs)
    self.output = linear(config, size, size, rngs)
    self.attention_norm = layer_norm(size, config.layer_norm_eps, rngs)
    self.mlp_in = linear(config, size, config.mlp_size, rngs)
    self.mlp_out = linear(config, config.mlp_size, size, rngs)
    self.mlp_norm = layer_norm(size, config.layer_norm_eps, rngs)

  def __call__(
    self, x_BLD: jax.Array, real_BL: jax.Array, key: jax.Array | None
  ) -> jax.Array:
    config = self.config
    keys = (None, None) if key is None else jax.random.split(key)
    heads = (*x_BLD.shape[:2], config.num_heads, -1)
    y_BLHA = attend(
      config,
      dense(self.query, x_BLD).reshape(heads),
      dense(self.key, x_BLD).reshape(heads),
      dense(self.value, x_BLD).reshape(heads),
      real_BL,
    )
    y_BLD = dense(self.output, y_BLHA.reshape(x_BLD.shape))
    x_BLD = self._add(self.attention_norm, x_BLD, y_BLD, keys[0])
    y_BLF = activate(config, dense(self.mlp_in, x_BLD))
    y_BLD = dense(self.mlp_out, y_BLF)
    return self._add(self.mlp_norm, x_BLD, y_BLD, keys[1])

  def _add(
    self,
    norm: nnx.LayerNorm,
    x_BLD: jax.Array,
    y_BLD: jax.Array,
    key: jax.Array | None,
  ) -> jax.Array:
    y_BLD = dropout(y_BLD.astype(jnp.float32), self.config.dropout, key)
    return norm(x_BLD.astype(jnp.float32) + y_BLD).astype(x_BLD.dtype)


class Bert(nnx.Module):
  """Token ids to hidden states."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config

    def table(rows: int) -> nnx.Embed:
      return nnx.Embed(
        rows,
        config.hidden_size,
        embedding_init=nnx.initializers.truncated_normal(
          config.initializer_range
        ),
        rngs=rngs,
      )

    self.word = table(config.vocab_size)
    self.position = table(config.max_positions)
    self.segment = table(NUM_SEGMENTS)
    self.norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs)

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap
    def stack(rngs: nnx.Rngs) -> Layer:
      return Layer(config, rngs)

    self.layers = stack(rngs)

  def __call__(
    self,
    token_BL: jax.Array,
    segment_BL: jax.Array,
    *,
    real_BL: jax.Array | None = None,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Hidden states of the last layer.

    Args:
      token_BL: wordpiece ids; 0 is padding.
      segment_BL: 0 or 1.
      real_BL: bool, what is not padding; None: all but id 0.
      key: of dropout; None: no dropout.

    Returns:
      [B, L, D] in the compute dtype.

    Raises:
      ValueError: the text is longer than the position table.
    """
    config = self.config
    length = token_BL.shape[1]
    if length > config.max_positions:
      raise ValueError(
        f'model.max_positions: {config.max_positions}, must be at least the '
        f'text length {length}'
      )
    embed_key, layers_key = (
      (None, None) if key is None else jax.random.split(key)
    )
    # A look-up's gradient is a scatter, slow on every device: only the words
    # need one. Positions are a slice, the two segments a choice.
    first_D, second_D = self.segment.embedding[...]
    x_BLD = (
      self.word(token_BL)
      + self.position.embedding[:length][None]
      + jnp.where(
        segment_BL[:, :, None] == 0, first_D[None, None], second_D[None, None]
      )
    )
    x_BLD = dropout(self.norm(x_BLD), config.dropout, embed_key)
    x_BLD = split_batch(x_BLD.astype(config.compute_dtype))
    real_BL = token_BL != 0 if real_BL is None else real_BL
    graphdef, stacked = nnx.split(self.layers)
    keys = (
      None
      if layers_key is None
      else jax.random.split(layers_key, config.num_layers)
    )

    def run(x_BLD, layer):
      state, key = layer
      x_BLD = nnx.merge(graphdef, state)(x_BLD, real_BL, key)
      return split_batch(x_BLD), None

    if config.remat != 'none':
      # Inside a scan nothing can be shared between the passes anyway.
      run = jax.checkpoint(run, prevent_cse=False, policy=_SAVED[config.remat])
    x_BLD, _ = jax.lax.scan(run, x_BLD, (stacked, keys))
    return x_BLD
