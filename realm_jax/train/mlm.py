"""Masked-language modelling of the encoder alone; closed-book answers too."""

from typing import Any

import jax
import jax.numpy as jnp

from realm_jax.config import Config
from realm_jax.model import parts
from realm_jax.train import losses
from realm_jax.train.state import TrainState
from realm_jax.train.update import Batch, update

TRAINED = ('encoder',)


def mlm_step(
  state: TrainState, batch: dict[str, jax.Array], key: jax.Array, config: Config
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of masked-language modelling (BERT).

  Args:
    state: with `params['encoder']`.
    batch: token_BL, segment_BL, position_BM, target_BM, weight_BM.
    key: of dropout.
    config: static.

  Returns:
    The next state and metrics: loss (nats a masked wordpiece),
    masked_accuracy, gradient_norm.
  """

  total = jnp.maximum(batch['weight_BM'].sum(), 1)

  def loss_fn(trained: dict[str, Any], batch: Batch, key: jax.Array) -> Any:
    encoder = parts.bind('encoder', config, trained['encoder'])
    logits_BMV = encoder(
      batch['token_BL'], batch['segment_BL'], batch['position_BM'], key=key
    )
    log_prob_BM = losses.token_log_probs(logits_BMV, batch['target_BM'])
    weight_BM = batch['weight_BM']
    right_BM = logits_BMV.argmax(-1) == batch['target_BM']
    accuracy = losses.Mean((right_BM * weight_BM).sum(), weight_BM.sum())
    loss = -(log_prob_BM * weight_BM).sum() / total
    return loss, {'masked_accuracy': accuracy}

  return update(state, TRAINED, loss_fn, batch, key, config)
