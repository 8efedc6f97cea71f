"""ICT, the retriever's warm start (paper section 3.4; ORQA section 5)."""

from typing import Any

import jax

from realm_jax.config import Config
from realm_jax.model import parts
from realm_jax.train import losses
from realm_jax.train.gradient_cache import cached_gradient
from realm_jax.train.optimizer import RETRIEVER
from realm_jax.train.state import TrainState, query_embedder, select
from realm_jax.train.update import Batch, move

TRAINED = RETRIEVER


def ict_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  key: jax.Array,
  config: Config,
  sep_id: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of the inverse cloze task with global in-batch negatives.

  Args:
    state: with the embedders' parameters.
    batch: query_BL, a sentence; block_BL, the block it came from.
    key: of dropout.
    config: static; `micro_batches` are embedded one after the other, the
      negatives are those of the whole batch (gradient_cache.py).
    sep_id: static, id of [SEP].

  Returns:
    The next state and metrics: loss (nats), ict_accuracy, gradient_norm.
  """

  def embed(trained: dict[str, Any], batch: Batch, key: jax.Array) -> Any:
    query_key, block_key = jax.random.split(key)
    query_side = parts.bind('embedder', config, query_embedder(trained))
    block_side = parts.bind('embedder', config, trained['document_embedder'])
    return (
      query_side(batch['query_BL'], sep_id=sep_id, key=query_key),
      block_side(batch['block_BL'], sep_id=sep_id, key=block_key),
    )

  def loss_fn(embedded: Any) -> Any:
    return losses.ict_loss(*embedded, config.score_temperature)

  trained = select(state.params, TRAINED)
  gradient = cached_gradient(
    embed, loss_fn, trained, batch, key, config.micro_batches
  )
  return move(state, gradient, config)
