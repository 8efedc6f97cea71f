"""What a training step changes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Parameters by part, optimizer state of the trained parts, steps done.

  `params` has `document_embedder`, `query_embedder` (absent when the two are
  shared), `encoder`, `reader`, as far as the stage knows them. Parts without
  optimizer state are carried along unchanged, for the stages that follow.
  """

  step: jax.Array
  params: dict[str, Any]
  opt_state: Any

  @classmethod
  def create(
    cls,
    params: dict[str, Any],
    trained: tuple[str, ...],
    tx: optax.GradientTransformation,
  ) -> 'TrainState':
    """A state at step 0; gradients change the parts `trained` that it has."""
    opt_state = tx.init(select(params, trained))
    return cls(jnp.zeros([], jnp.int32), params, opt_state)

  def update(
    self, grads: dict[str, Any], tx: optax.GradientTransformation
  ) -> 'TrainState':
    """One optimizer step on the parts that `grads` has."""
    trained = {part: self.params[part] for part in grads}
    updates, opt_state = tx.update(grads, self.opt_state, trained)
    params = {**self.params, **optax.apply_updates(trained, updates)}
    return TrainState(self.step + 1, params, opt_state)


def query_embedder(params: dict[str, Any]) -> dict[str, Any]:
  """The query side's parameters: its own, or the shared ones."""
  return params.get('query_embedder', params.get('document_embedder'))


def select(params: dict[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
  """The parts of `params` that a stage trains."""
  return {part: params[part] for part in parts if part in params}
