"""What every step ends with: the gradient of a batch, and the update."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from realm_jax.config import Config
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train.optimizer import make_optimizer
from realm_jax.train.state import TrainState, select

Batch = dict[str, jax.Array]
# (parameters, batch, key of dropout) -> loss, metrics
LossFn = Callable[[dict[str, Any], Batch, jax.Array], tuple[jax.Array, Any]]


def update(
  state: TrainState,
  names: Iterable[str],
  loss_fn: LossFn,
  batch: Batch,
  key: jax.Array,
  config: Config,
) -> tuple[TrainState, dict[str, Any]]:
  """Moves the parameters along the gradient of a batch's loss.

  Args:
    state: before the step.
    names: the parts that are trained, of those there are.
    loss_fn: of a batch or a micro-batch; the losses of the micro-batches must
      add up to the batch's.
    batch: arrays of one first axis.
    key: of dropout.
    config: `micro_batches` divides the batch: their activations are in memory
      one after the other, their metrics are averaged.

  Returns:
    The next state, and the metrics with `loss` and `gradient_norm`.
  """
  trained = select(state.params, names)
  loss, metrics, grads = _gradient(
    loss_fn, trained, batch, key, config.micro_batches
  )
  metrics = {
    'loss': loss,
    **metrics,
    'gradient_norm': optax.tree.norm(grads),
  }
  return state.update(grads, make_optimizer(config)), metrics


def _gradient(
  loss_fn: LossFn,
  params: dict[str, Any],
  batch: Batch,
  key: jax.Array,
  count: int,
) -> tuple[jax.Array, dict[str, Any], dict[str, Any]]:
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
  if count == 1:
    (loss, metrics), grads = value_and_grad(params, batch, key)
    return loss, metrics, grads

  def add(total: Any, part: Any) -> tuple[Any, Any]:
    (loss, metrics), grads = value_and_grad(params, *part)
    return jax.tree.map(jnp.add, total, (loss, grads)), metrics

  parts = {
    name: mesh_lib.split_batch(x.reshape(count, -1, *x.shape[1:]), axis=1)
    for name, x in batch.items()
  }
  none = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
  (loss, grads), metrics = jax.lax.scan(
    add, none, (parts, jax.random.split(key, count))
  )
  # Scalars are averaged; what has rows is that of the first part.
  metrics = jax.tree.map(lambda m: m.mean() if m.ndim == 1 else m[0], metrics)
  return loss, metrics, grads
