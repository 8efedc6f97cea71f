"""ICT, the retriever's warm start (REALM.md section 2; ORQA section 5)."""

from typing import Any

import jax

from realm_jax.config import Config
from realm_jax.model import parts
from realm_jax.train import losses
from realm_jax.train.optimizer import RETRIEVER
from realm_jax.train.state import TrainState, query_embedder
from realm_jax.train.update import Batch, update

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
    config: static.
    sep_id: static, id of [SEP].

  Returns:
    The next state and metrics: loss (nats), ict_accuracy, gradient_norm.
  """

  def loss_fn(trained: dict[str, Any], batch: Batch, key: jax.Array) -> Any:
    query_key, block_key = jax.random.split(key)
    query_side = parts.bind('embedder', config, query_embedder(trained))
    block_side = parts.bind('embedder', config, trained['document_embedder'])
    return losses.ict_loss(
      query_side(batch['query_BL'], sep_id=sep_id, key=query_key),
      block_side(batch['block_BL'], sep_id=sep_id, key=block_key),
      config.score_temperature,
    )

  # In-batch negatives need the batch whole: inputs.py refuses micro-batches.
  return update(state, TRAINED, loss_fn, batch, key, config)
