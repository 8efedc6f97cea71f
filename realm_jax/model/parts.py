"""The parts of REALM: embedder, knowledge-augmented encoder, reader.

Outside, parameters are plain nested dicts of arrays (`init_part`); inside a
step `bind` makes a module of them:

  params = init_part('embedder', config, key)
  embedder = bind('embedder', config, params)
  query_BE = embedder(query_BL, sep_id=sep_id)
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from realm_jax.config import Config, ModelConfig
from realm_jax.model import bert

Part = Literal['embedder', 'encoder', 'reader']

# The score of what is no span: finite, so that a softmax over nothing else
# still has a gradient (0 / 0 with -inf), and unmoved by adding a logit.
NO_SPAN = -1e30


def segments(token_BL: jax.Array, sep_id: int) -> jax.Array:
  """Segments of `[CLS] title [SEP] body [SEP]`: 1 after the first [SEP]."""
  sep_BL = (token_BL == sep_id).astype(jnp.int32)
  before_BL = jnp.cumsum(sep_BL, axis=1) - sep_BL
  return ((before_BL > 0) & (token_BL != 0)).astype(jnp.int32)


class Embedder(nnx.Module):
  """Text to a vector of the retrieval space (paper section 3.2)."""

  def __init__(
    self, config: ModelConfig, pooling: Literal['cls', 'mean'], rngs: nnx.Rngs
  ):
    self.pooling = pooling
    self.bert = bert.Bert(config, rngs)
    # One vector a text: float32 costs nothing, and inner products need it.
    if pooling == 'cls':
      self.pooler = bert.linear(
        config, config.hidden_size, config.hidden_size, rngs, 'float32'
      )
    self.projection = bert.linear(
      config, config.hidden_size, config.retrieval_size, rngs, 'float32'
    )
    self.norm = bert.layer_norm(
      config.retrieval_size, config.projection_eps, rngs
    )

  def __call__(
    self,
    token_BL: jax.Array,
    *,
    sep_id: int,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Embeds queries `[CLS] x [SEP]` or blocks `[CLS] title [SEP] body [SEP]`.

    Args:
      token_BL: wordpiece ids; 0 is padding.
      sep_id: id of [SEP]; segment 1 begins after the first one.
      key: of dropout; None: no dropout.

    Returns:
      [B, E] float32.
    """
    return self.embed(token_BL, segments(token_BL, sep_id), key=key)

  def embed(
    self,
    token_BL: jax.Array,
    segment_BL: jax.Array,
    *,
    real_BL: jax.Array | None = None,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """As `__call__`, with the segments given; `real_BL` as in Bert."""
    real_BL = token_BL != 0 if real_BL is None else real_BL
    x_BLD = self.bert(token_BL, segment_BL, real_BL=real_BL, key=key)
    if self.pooling == 'cls':
      pooled_BD = jnp.tanh(self.pooler(x_BLD[:, 0]))
    else:
      real_BL1 = real_BL.astype(jnp.float32)[:, :, None]
      # A text of padding alone has no mean: it is embedded as zeros.
      pooled_BD = (x_BLD * real_BL1).sum(1) / jnp.maximum(real_BL1.sum(1), 1)
    return self.norm(self.projection(pooled_BD))


class Encoder(nnx.Module):
  """BERT with its masked-language head (paper section 3.2)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.bert = bert.Bert(config, rngs)
    self.transform = bert.linear(
      config, config.hidden_size, config.hidden_size, rngs
    )
    self.norm = bert.layer_norm(config.hidden_size, config.layer_norm_eps, rngs)
    self.bias = nnx.Param(jnp.zeros(config.vocab_size))

  def __call__(
    self,
    token_BL: jax.Array,
    segment_BL: jax.Array,
    position_BM: jax.Array,
    *,
    real_BL: jax.Array | None = None,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Scores of the vocabulary at the masked positions.

    Args:
      token_BL: wordpiece ids; 0 is padding.
      segment_BL: 0 or 1.
      position_BM: positions in the text, from 0.
      real_BL: bool, what is not padding; None: all but id 0.
      key: of dropout; None: no dropout.

    Returns:
      [B, M, V] float32 logits.
    """
    x_BLD = self.bert(token_BL, segment_BL, real_BL=real_BL, key=key)
    # Taken by a product with one-hot rows: the gradient of a gather is a
    # scatter, slow on every device.
    place_11L = jnp.arange(token_BL.shape[1])[None, None, :]
    chosen_BML = (position_BM[:, :, None] == place_11L).astype(x_BLD.dtype)
    x_BMD = jnp.einsum('BML,BLD->BMD', chosen_BML, x_BLD)
    x_BMD = self.norm(bert.activate(self.config, self.transform(x_BMD)))
    # The decoder is tied to the word embeddings.
    dtype = self.config.compute_dtype
    logit_BMV = jnp.einsum(
      'BMD,VD->BMV',
      x_BMD.astype(dtype),
      self.bert.word.embedding[...].astype(dtype),
      preferred_element_type=jnp.float32,
    )
    return logit_BMV + self.bias[...][None, None]


class Reader(nnx.Module):
  """Scores answer spans inside a block's body (release, ORQA)."""

  def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
    self.config = config
    self.bert = bert.Bert(config, rngs)
    # The first half of the outputs is P_start, the second P_end.
    self.span = bert.linear(
      config, config.hidden_size, 2 * config.span_hidden_size, rngs
    )
    self.norm = bert.layer_norm(
      config.span_hidden_size, config.reader_eps, rngs
    )
    # Float32: bfloat16 would make ties of spans that differ.
    self.output = bert.linear(
      config, config.span_hidden_size, 1, rngs, 'float32'
    )

  def __call__(
    self,
    token_BL: jax.Array,
    segment_BL: jax.Array,
    body_start_B: jax.Array,
    body_end_B: jax.Array,
    *,
    real_BL: jax.Array | None = None,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Scores `w . LN(ReLU(P_start h_i + P_end h_j))` of all short spans.

    Args:
      token_BL: wordpiece ids of `[CLS] question [SEP] body [SEP]`; 0 is
        padding.
      segment_BL: 0 or 1.
      body_start_B: position of the body's first token.
      body_end_B: the position after its last.
      real_BL: bool, what is not padding; None: all but id 0.
      key: of dropout; None: no dropout.

    Returns:
      [B, L, W] float32, W = `max_span_width`: [b, i, w] is the score of the
      tokens i to i + w, both included; NO_SPAN when one is not in the body.
      The retriever's logit is not in it.
    """
    x_BLD = self.bert(token_BL, segment_BL, real_BL=real_BL, key=key)
    length = token_BL.shape[1]
    start_BLS, end_BLS = jnp.split(
      self.span(x_BLD).astype(jnp.float32), 2, axis=-1
    )
    width = self.config.max_span_width
    end_BLS = jnp.pad(end_BLS, ((0, 0), (0, width - 1), (0, 0)))
    norm_graph, norm_state = nnx.split((self.norm, self.output))

    # One width at a time, recomputed in the backward pass: [B, L, W, S] is
    # never held.
    @jax.checkpoint
    def score(w):
      norm, output = nnx.merge(norm_graph, norm_state)
      shifted_BLS = jax.lax.dynamic_slice_in_dim(end_BLS, w, length, axis=1)
      span_BLS = norm(jax.nn.relu(start_BLS + shifted_BLS))
      return output(span_BLS)[:, :, 0]

    score_WBL = jax.lax.map(score, jnp.arange(width))
    first_1L1 = jnp.arange(length)[None, :, None]
    last_1LW = first_1L1 + jnp.arange(width)[None, None, :]
    inside_BLW = (first_1L1 >= body_start_B[:, None, None]) & (
      last_1LW < body_end_B[:, None, None]
    )
    return jnp.where(inside_BLW, jnp.moveaxis(score_WBL, 0, -1), NO_SPAN)


def init_part(name: Part, config: Config, key: jax.Array) -> dict[str, Any]:
  """Fresh parameters of a part, float32, initialised as BERT does."""
  part = _create(name, config.model, config.pooling, nnx.Rngs(params=key))
  return nnx.to_pure_dict(nnx.state(part))


def bind(name: Part, config: Config, params: dict[str, Any]) -> Any:
  """The module of a part with these parameters; usable under jit.

  Args:
    name: 'embedder', 'encoder' or 'reader'.
    config: decides the sizes and the pooling.
    params: what `init_part` gives, or gradients of that form.

  Returns:
    The Embedder, Encoder or Reader.
  """
  graphdef, abstract = _abstract(name, config.model, config.pooling)
  state = jax.tree.map(lambda leaf: leaf, abstract)  # the cached one stays
  nnx.replace_by_pure_dict(state, params)
  return nnx.merge(graphdef, state)


def _create(
  name: Part,
  config: ModelConfig,
  pooling: Literal['cls', 'mean'],
  rngs: nnx.Rngs,
) -> nnx.Module:
  if name == 'embedder':
    return Embedder(config, pooling, rngs)
  if name == 'encoder':
    return Encoder(config, rngs)
  if name == 'reader':
    return Reader(config, rngs)
  raise ValueError(f'part {name!r}: choose from embedder, encoder, reader')


@functools.lru_cache
def _abstract(
  name: Part, config: ModelConfig, pooling: Literal['cls', 'mean']
) -> tuple[Any, Any]:
  part = nnx.eval_shape(
    lambda: _create(name, config, pooling, nnx.Rngs(params=0))
  )
  return nnx.split(part)
