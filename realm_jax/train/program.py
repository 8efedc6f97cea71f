"""A step as one compiled program whose output can be its next input."""

from collections.abc import Callable
from typing import Any

import jax

from realm_jax.index.search import Index
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train.state import TrainState


def jit_step(
  step: Callable[..., Any],
  mesh: jax.sharding.Mesh,
  state: TrainState,
  index: Index | None,
) -> Any:
  """Compiles `step(state, batch, index, key) -> (state, index, metrics)`.

  State and index are donated and come out split as they went in: left to
  itself XLA may choose another split for the output, and the second step
  would compile again.

  Args:
    step: a stage's step, its static arguments bound.
    mesh: of the run.
    state: as it will go in (arrays or abstract).
    index: the same, or None.

  Returns:
    The jitted step.
  """
  shardings = (
    mesh_lib.tree_shardings(state, mesh),
    jax.tree.map(lambda leaf: leaf.sharding, index),
    mesh_lib.replicated(mesh),  # metrics: every process can read them
  )
  return jax.jit(step, donate_argnums=(0, 2), out_shardings=shardings)
