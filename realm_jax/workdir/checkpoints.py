"""Checkpoints of a run: Orbax's, with the parts of a model named.

`checkpoints/<step>/` holds one item for each top-level key of the state
(`params`, `opt_state`, ...) and `meta`, a JSON object. A part of the model
(`params/<part>`) can be read by name without the rest. A step is listed only
once it is committed. `saved.jsonl` has a line for every step that was ever
saved, which outlives the checkpoint: `step, embedder_digest, index_version`.
"""

import contextlib
import math
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from realm_jax.workdir import files, trees

_DELETED = 'deleted'  # steps on their way out
_RECORDED = ('embedder_digest', 'index_version', 'score')


class Checkpoints:
  """Saves and restores the states of a run; all its processes call it alike.

  For the trainer alone, under its lock: it clears what a dead run left. Others
  use the functions of this module.

  Args:
    path: the workdir (not its `checkpoints`).
    keep: how many of the newest steps stay.
    keep_best: keep the step with the highest score too.
  """

  def __init__(self, path: epath.PathLike, keep: int, keep_best: bool = False):
    self._path = path = files.absolute(path)
    self._directory = path / 'checkpoints'
    self._primary = jax.process_index() == 0
    if self._primary and self._directory.exists():
      for child in self._directory.iterdir():
        if ocp.utils.is_tmp_checkpoint(child):  # of a run that was killed
          child.rmtree()
    policies = [ocp.checkpoint_managers.LatestN(keep)]
    if keep_best:
      policies.append(
        ocp.checkpoint_managers.BestN(
          get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
        )
      )
    self._manager = _Manager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(
          policies
        ),
        best_fn=_score if keep_best else None,
        # On a disk a step leaves in one move: nobody lists one that is half
        # deleted.
        todelete_subdir=_DELETED,
      ),
    )
    self._deletion: threading.Thread | None = None
    self._unrecorded: list[dict[str, Any]] = []
    if self._primary:
      self._log = files.LineLog(path / 'saved.jsonl')
      self._delete()
      # Newer steps were deleted by hand: what was made of them is not of the
      # run that goes on from here.
      newest = max(steps(path), default=-1)
      self._log.keep(lambda record: record['step'] <= newest)
      # A run that was killed may have committed a step and not recorded it.
      recorded = {line['step'] for line in files.read_lines(self._log.path)}
      for step in steps(path):
        if step not in recorded:
          self._unrecorded.append(_record(step, read_meta(path, step)))
      self._write_records()

  def save(
    self,
    step: int,
    state: dict[str, Any],
    meta: dict[str, Any],
    score: float | None = None,
  ) -> None:
    """Starts to save a step; training goes on while it is written.

    Args:
      step: steps done.
      state: top-level keys to pytrees of arrays: `params`, `opt_state`, ...
      meta: JSON values; `embedder_digest` and `index_version` go to
        saved.jsonl too.
      score: what `keep_best` compares; higher is better.

    Raises:
      ValueError: the step is saved already.
      OSError: this or an earlier save failed.
    """
    self.wait()
    if step in self._manager.all_steps():
      raise ValueError(f'{self._directory / str(step)}: is saved already')
    meta = meta | {'score': score}
    items = {
      name: ocp.args.PyTreeSave(value)  # type: ignore[call-arg]
      for name, value in state.items()
    }
    self._manager.save(
      step,
      args=ocp.args.Composite(
        **items,
        meta=ocp.args.JsonSave(meta),  # type: ignore[call-arg]
      ),
      # Orbax warns of a step without metrics where the best is kept.
      metrics={'score': -math.inf if score is None else score},
      force=True,
    )
    self._unrecorded.append(_record(step, meta))

  def wait(self) -> None:
    """Waits until all that was saved is committed and recorded.

    Raises:
      OSError: a save failed, as on a full disk.
    """
    try:
      self._manager.wait_until_finished()
    except ValueError as error:  # TensorStore's for every kind of failure
      raise OSError(f'{self._directory}: saving failed: {error}') from error
    if self._primary:
      self._write_records()
      self._delete()

  def latest_step(self) -> int | None:
    """The newest step saved, or None."""
    return self._manager.latest_step()

  def restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    """Restores a state.

    Args:
      step: a committed step.
      abstract: the state's pytrees with jax.ShapeDtypeStruct leaves; each
        leaf is read straight to its sharding, or to numpy if it has none.

    Returns:
      The state, in the structure of `abstract`.

    Raises:
      ValueError: the checkpoint is of another model; names the parameter.
    """
    self.wait()
    return {
      name: trees.restore(self._directory / str(step) / name, tree)
      for name, tree in abstract.items()
    }

  def restore_item(
    self,
    step: int,
    name: str,
    abstract: dict[str, jax.ShapeDtypeStruct],
    padded: bool = False,
  ) -> dict[str, jax.Array]:
    """Restores arrays that were saved as a top-level key of the state.

    Args:
      step: a committed step.
      name: of the key.
      abstract: the arrays with their shardings.
      padded: to other devices than they were saved from, maybe: what is missing
        is zeros.

    Returns:
      Those of the arrays that were saved.
    """
    directory = self._directory / str(step) / name
    if not directory.exists():
      return {}
    saved = trees.saved_tree(directory)
    both = {key: leaf for key, leaf in abstract.items() if key in saved}
    return trees.load(directory, both, partial=True, strict=not padded)

  def settle(self) -> None:
    """Lets a save come to its end before the run ends with an error."""
    with contextlib.suppress(Exception):  # the run has one to tell already
      self.wait()

  def close(self) -> None:
    """Waits as `wait` does, and ends the threads."""
    self.wait()
    self._manager.close()
    if self._deletion is not None:
      self._deletion.join()

  def _write_records(self) -> None:
    committed = set(steps(self._path))  # without a save that failed
    for record in self._unrecorded:
      if record['step'] in committed:
        self._log.append(record)
    self._unrecorded = []

  def _delete(self) -> None:
    """Unlinks the old steps in a thread: gigabytes take long."""
    deleted = self._directory / _DELETED
    if not files.is_local(deleted) or not deleted.exists():
      return
    if self._deletion is not None:
      self._deletion.join()
    old = list(deleted.iterdir())
    self._deletion = threading.Thread(
      target=lambda: [shutil.rmtree(step) for step in old]
    )
    self._deletion.start()


class Damaged(ValueError):
  """A checkpoint does not hold what was saved."""


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, which leaves SIGTERM to the training loop.

  JAX's preemption service has one counter of questions, the loop's
  (train/terminated.py). Orbax asks it too when it saves, by the step: a lower
  number, which can put the point where all processes stop into the past.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


def steps(path: epath.PathLike) -> list[int]:
  """Committed steps of a workdir, oldest first; cheap enough to poll."""
  directory = epath.Path(path) / 'checkpoints'
  if not directory.exists():
    return []
  return sorted(
    int(child.name)
    for child in directory.iterdir()
    if child.name.isdigit() and ocp.utils.is_checkpoint_finalized(child)
  )


def best_step(path: epath.PathLike) -> int | None:
  """The committed step with the highest score (the newest of equals)."""
  scores = [
    (read_meta(path, step)['score'], step)
    for step in steps(path)
    if read_meta(path, step)['score'] is not None
  ]
  return max(scores)[1] if scores else None


def read_meta(path: epath.PathLike, step: int) -> dict[str, Any]:
  """The meta of a committed step."""
  return files.read_json(_committed(path, step) / 'meta' / 'metadata')


def read_record(path: epath.PathLike, step: int) -> dict[str, Any]:
  """What was recorded when a step was saved, be it deleted since or not.

  Args:
    path: the workdir.
    step: the step.

  Returns:
    `step, embedder_digest, index_version, score`; absent values are None.

  Raises:
    ValueError: no such step was saved here.
  """
  saved = epath.Path(path) / 'saved.jsonl'
  for record in reversed(files.read_lines(saved)):
    if record['step'] == step:
      return record
  # The line follows the commit a moment later.
  if step in steps(path):
    return _record(step, read_meta(path, step))
  raise ValueError(f'{saved}: no checkpoint of step {step} was saved')


def was_saved(path: epath.PathLike, step: int) -> bool:
  """Whether a step is recorded: false once a run went on from an earlier."""
  saved = epath.Path(path) / 'saved.jsonl'
  return any(record['step'] == step for record in files.read_lines(saved))


def params_shapes(path: epath.PathLike, step: int) -> dict[str, Any]:
  """Names, shapes and dtypes of the parameters of a committed step.

  Args:
    path: the workdir.
    step: a committed step.

  Returns:
    part to nested dict of jax.ShapeDtypeStruct (without shardings).

  Raises:
    FileNotFoundError: the step is not there (any more).
  """
  directory = _committed(path, step)
  with _there(directory):
    saved = trees.saved_tree(directory / 'params')
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved
  )


def restore_part(
  path: epath.PathLike, step: int, part: str, abstract: Any
) -> Any:
  """Restores `params/<part>` alone; nothing else is read.

  Args:
    path: the workdir.
    step: a committed step.
    part: document_embedder, query_embedder, encoder or reader.
    abstract: the part's tree with jax.ShapeDtypeStruct leaves; each is read
      straight to its sharding, or to numpy if it has none.

  Returns:
    The parameters of the part.

  Raises:
    FileNotFoundError: the step is not there (any more): take a newer one.
    ValueError: the checkpoint has no such part or is of another model.
  """
  directory = _committed(path, step)
  with _there(directory):
    wanted = {part: abstract}
    return trees.restore(directory / 'params', wanted, partial=True)[part]


def _committed(path: epath.PathLike, step: int) -> epath.Path:
  directory = files.absolute(path) / 'checkpoints' / str(step)
  if not directory.exists() or not ocp.utils.is_checkpoint_finalized(directory):
    raise FileNotFoundError(
      f'{directory}: no such checkpoint; has {steps(path)}'
    )
  return directory


@contextlib.contextmanager
def _there(directory: epath.Path) -> Iterator[None]:
  """What fails to be read because it is deleted meanwhile was not found."""
  try:
    yield
  except (ValueError, OSError) as error:
    if not directory.exists():
      raise FileNotFoundError(
        f'{directory}: was deleted while it was read'
      ) from error
    raise


def _record(step: int, meta: dict[str, Any]) -> dict[str, Any]:
  return {'step': step} | {name: meta.get(name) for name in _RECORDED}


def _score(metrics: dict[str, float]) -> float:
  return metrics['score']
