"""Trees of arrays that Orbax saved, restored as they are wanted here."""

import functools
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath


def saved_tree(directory: epath.Path) -> Any:
  """Shape and type of every array that was saved."""
  return ocp.PyTreeCheckpointHandler().metadata(directory).tree


def restore(directory: epath.Path, abstract: Any, partial: bool = False) -> Any:
  """Restores a tree that must be of the shapes and types that were saved.

  Args:
    directory: that Orbax saved the tree in.
    abstract: the tree with jax.ShapeDtypeStruct leaves; each leaf is read
      straight to its sharding, or to numpy if it has none.
    partial: the tree may be a part of what was saved.

  Raises:
    ValueError: another model was saved; names the parameter.
  """
  saved = saved_tree(directory)
  _check_same_model(directory, abstract, saved, partial)
  return load(directory, abstract, partial)


def load(
  directory: epath.Path,
  abstract: Any,
  partial: bool = False,
  strict: bool = True,
) -> Any:
  """Restores a tree unchecked; not `strict`: what is missing is zeros."""
  restore_args = jax.tree.map(
    functools.partial(_restore_args, strict=strict), abstract
  )
  # No process waits for the others, which may find that the step is gone.
  alone = ocp.options.MultiprocessingOptions(
    active_processes={jax.process_index()}, barrier_sync_key_prefix='alone'
  )
  with ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
    multiprocessing_options=alone,
  ) as checkpointer:
    return checkpointer.restore(
      directory,
      args=ocp.args.PyTreeRestore(  # type: ignore[call-arg]
        item=abstract, restore_args=restore_args, partial_restore=partial
      ),
    )


def _restore_args(leaf: jax.ShapeDtypeStruct, strict: bool) -> ocp.RestoreArgs:
  if leaf.sharding is None:
    return ocp.RestoreArgs(restore_type=np.ndarray)
  return ocp.ArrayRestoreArgs(
    sharding=leaf.sharding,
    global_shape=leaf.shape,
    dtype=leaf.dtype,
    strict=strict,
  )


def _check_same_model(
  directory: epath.Path, wanted: Any, saved: Any, partial: bool
) -> None:
  """Orbax would cast, and name no parameter."""
  want, have = _leaves(wanted), _leaves(saved)
  for name, leaf in want.items():
    if name not in have:
      raise ValueError(
        f'{directory}: the checkpoint has no {name}; has '
        f'{", ".join(sorted({key.split("/")[0] for key in have}))}'
      )
    found = (tuple(have[name].shape), np.dtype(have[name].dtype))
    if found != (tuple(leaf.shape), np.dtype(leaf.dtype)):
      raise ValueError(
        f'{directory}: {name} is {found[1]}{list(found[0])}, the model here '
        f'has {np.dtype(leaf.dtype)}{list(leaf.shape)}'
      )
  if not partial and set(have) - set(want):
    name = min(set(have) - set(want))
    raise ValueError(f'{directory}: the model here has no {name}')


def _leaves(tree: Any) -> dict[str, Any]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
