"""AdamW as BERT and REALM use it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from realm_jax.config import Config, OptimizerConfig

RETRIEVER = ('query_embedder', 'document_embedder')


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """The optimizer of a stage: its schedule ends at `num_steps`.

  Global-norm clipping, Adam without bias correction unless asked, decoupled
  weight decay on matrices only, linear warm-up and decay to 0. The retriever's
  parameters have a learning rate of their own and stay fixed for the first
  `freeze_retriever_steps` steps; its moments are gathered meanwhile (from
  empty ones the first free steps would be several times too long), and its
  rate then warms up over `warmup_steps` as the reader's did at the start.
  """
  options = config.optimizer
  schedule = optax.join_schedules(
    [
      optax.linear_schedule(0.0, options.learning_rate, options.warmup_steps),
      optax.linear_schedule(
        options.learning_rate,
        0.0,
        max(config.num_steps - options.warmup_steps, 1),
      ),
    ],
    [options.warmup_steps],
  )
  return optax.chain(
    optax.clip_by_global_norm(options.clip_norm),
    optax.scale_by_adam(options.b1, options.b2, options.eps)
    if options.bias_correction
    else _scale_by_adam_uncorrected(options),
    optax.add_decayed_weights(options.weight_decay, mask=_decayed),
    _scale_retriever(
      options.retriever_learning_rate_scale,
      config.freeze_retriever_steps,
      options.warmup_steps,
    ),
    optax.scale_by_learning_rate(schedule),
  )


def _decayed(params: Any) -> Any:
  """True for what decays: not for biases and LayerNorm scales."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: getattr(path[-1], 'key', None) not in ('bias', 'scale'),
    params,
  )


def _scale_by_adam_uncorrected(
  options: OptimizerConfig,
) -> optax.GradientTransformation:
  """Adam's update with the raw moments: the release had no bias correction."""

  def init(params: Any) -> optax.ScaleByAdamState:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return optax.ScaleByAdamState(
      count=jnp.zeros([], jnp.int32),
      mu=zeros,
      nu=jax.tree.map(jnp.zeros_like, params),
    )

  def update(
    updates: Any, state: optax.ScaleByAdamState, params: Any = None
  ) -> tuple[Any, optax.ScaleByAdamState]:
    del params
    mu = jax.tree.map(
      lambda m, g: options.b1 * m + (1 - options.b1) * g, state.mu, updates
    )
    nu = jax.tree.map(
      lambda v, g: options.b2 * v + (1 - options.b2) * g * g, state.nu, updates
    )
    updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + options.eps), mu, nu)
    return updates, optax.ScaleByAdamState(state.count + 1, mu, nu)

  return optax.GradientTransformation(init, update)


def _scale_retriever(
  scale: float, freeze_steps: int, warmup_steps: int
) -> optax.GradientTransformation:
  """Scales the retriever's updates: 0 in the first steps, then a warm-up."""

  def init(params: Any) -> optax.ScaleByScheduleState:
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

  def update(
    updates: dict[str, Any],
    state: optax.ScaleByScheduleState,
    params: Any = None,
  ) -> tuple[Any, optax.ScaleByScheduleState]:
    del params
    factor = scale
    if freeze_steps:
      thawed = (state.count - freeze_steps + 1) / max(warmup_steps, 1)
      factor = scale * jnp.clip(thawed, 0.0, 1.0)
    updates = {
      part: jax.tree.map(lambda u: u * factor, tree)
      if part in RETRIEVER
      else tree
      for part, tree in updates.items()
    }
    return updates, optax.ScaleByScheduleState(state.count + 1)

  return optax.GradientTransformation(init, update)
