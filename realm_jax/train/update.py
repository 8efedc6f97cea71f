"""What every step ends with: the gradient of a batch, and the update."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from realm_jax.config import Config
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train.losses import Mean
from realm_jax.train.optimizer import make_optimizer
from realm_jax.train.state import TrainState, select

Batch = dict[str, jax.Array]
# (parameters, batch, key of dropout) -> loss, metrics: means over the examples,
# `Mean`s over something else, and arrays by example
LossFn = Callable[[dict[str, Any], Batch, jax.Array], tuple[jax.Array, Any]]


class Gradient(NamedTuple):
  """Of a batch's loss, with respect to the trained parameters."""

  loss: jax.Array
  metrics: dict[str, Any]
  grads: dict[str, Any]


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
      one after the other.

  Returns:
    The next state, and the metrics with `loss` and `gradient_norm`.
  """
  trained = select(state.params, names)
  gradient = _gradient(loss_fn, trained, batch, key, config.micro_batches)
  return move(state, gradient, config)


def move(
  state: TrainState, gradient: Gradient, config: Config
) -> tuple[TrainState, dict[str, Any]]:
  """Moves the parameters along a gradient; returns what `update` does."""
  metrics = {
    'loss': gradient.loss,
    **gradient.metrics,
    'gradient_norm': optax.tree.norm(gradient.grads),
  }
  return state.update(gradient.grads, make_optimizer(config)), metrics


def split_parts(batch: Any, count: int) -> Any:
  """[B, ...] to [count, B / count, ...], each part split over `data`."""
  return jax.tree.map(
    lambda x: mesh_lib.split_batch(x.reshape(count, -1, *x.shape[1:]), axis=1),
    batch,
  )


def _gradient(
  loss_fn: LossFn,
  params: dict[str, Any],
  batch: Batch,
  key: jax.Array,
  count: int,
) -> Gradient:
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
  if count == 1:
    (loss, metrics), grads = value_and_grad(params, batch, key)
    return Gradient(loss, _divided(metrics), grads)

  def add(total: Any, part: Any) -> tuple[Any, Any]:
    (loss, metrics), grads = value_and_grad(params, *part)
    return jax.tree.map(jnp.add, total, (loss, grads)), metrics

  none = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
  (loss, grads), metrics = jax.lax.scan(
    add, none, (split_parts(batch, count), jax.random.split(key, count))
  )

  def join(part: Any) -> Any:
    if _is_mean(part):
      return jax.tree.map(jnp.sum, part)
    return part.mean() if part.ndim == 1 else part.reshape(-1, *part.shape[2:])

  metrics = jax.tree.map(join, metrics, is_leaf=_is_mean)
  return Gradient(loss, _divided(metrics), grads)


def _is_mean(metric: Any) -> bool:
  return isinstance(metric, Mean)


def _divided(metrics: Any) -> Any:
  return jax.tree.map(
    lambda m: m.value() if _is_mean(m) else m, metrics, is_leaf=_is_mean
  )
