"""Masked-language modelling of the encoder alone; closed-book answers too."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from realm_jax.config import Config
from realm_jax.model import parts
from realm_jax.train import losses
from realm_jax.train.optimizer import make_optimizer
from realm_jax.train.state import TrainState

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

  def loss_fn(trained: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    encoder = parts.bind('encoder', config, trained['encoder'])
    logits_BMV = encoder(
      batch['token_BL'], batch['segment_BL'], batch['position_BM'], key=key
    )
    log_prob_BM = losses.token_log_probs(logits_BMV, batch['target_BM'])
    weight_BM = batch['weight_BM']
    total = jnp.maximum(weight_BM.sum(), 1)
    right_BM = logits_BMV.argmax(-1) == batch['target_BM']
    accuracy = (right_BM * weight_BM).sum() / total
    return -(log_prob_BM * weight_BM).sum() / total, accuracy

  trained = {part: state.params[part] for part in TRAINED}
  (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
  metrics = {
    'loss': loss,
    'masked_accuracy': accuracy,
    'gradient_norm': optax.tree.norm(grads),
  }
  return state.update(grads, make_optimizer(config)), metrics
