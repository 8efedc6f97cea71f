"""metrics.jsonl, swaps.jsonl and TensorBoard events of a run."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX
from etils import epath

from realm_jax.workdir import files


class MetricsWriter:
  """Writes the metrics of logged steps; one process of a run has one.

  Args:
    path: the workdir.
    resumed_step: the step of the checkpoint that was resumed; lines of later
      steps (of the run that died) are dropped. None: a run from step 0.
  """

  def __init__(self, path: epath.PathLike, resumed_step: int | None = None):
    path = epath.Path(path)
    self._lines = open_log(path / 'metrics.jsonl', resumed_step)
    first = 0 if resumed_step is None else resumed_step + 1
    self._events = tensorboardX.SummaryWriter(
      str(path), purge_step=first, flush_secs=30
    )

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes one line at once, and the numbers in it as events.

    Args:
      step: the step that the values are of.
      values: scalars (also of numpy and jax), text, lists of scalars; numbers
        that are not finite are written as null.
    """
    line = {'step': step} | {name: plain(v) for name, v in values.items()}
    self._lines.append(line)
    for name, value in line.items():
      number = isinstance(value, int | float) and not isinstance(value, bool)
      if number and name != 'step':
        self._events.add_scalar(name, value, step)

  def close(self) -> None:
    self._events.close()


class SwapLog:
  """swaps.jsonl: which index version was used from which step on.

  Args:
    path: the workdir.
    resumed_step: as in MetricsWriter. A swap at the resumed step itself stays:
      the loop swaps before it saves (but in process after SIGTERM: then the
      run that goes on swaps at that step).
  """

  def __init__(self, path: epath.PathLike, resumed_step: int | None = None):
    self._lines = open_log(epath.Path(path) / 'swaps.jsonl', resumed_step)

  def write(
    self, step: int, version: int, checkpoint_step: int, **values: Any
  ) -> None:
    """Logs one swap.

    Args:
      step: steps done when the version came into use.
      version: the index version.
      checkpoint_step: step of the checkpoint that it was built from.
      **values: more about it, as for MetricsWriter.write.
    """
    self._lines.append(
      {'step': step, 'version': version, 'checkpoint_step': checkpoint_step}
      | {name: plain(value) for name, value in values.items()}
    )


def open_log(path: epath.PathLike, resumed_step: int | None) -> files.LineLog:
  """Opens a log of lines with a `step`; drops those of a run that died.

  Args:
    path: the file.
    resumed_step: lines of later steps are dropped; None: all lines.
  """
  log = files.LineLog(path)
  last = -1 if resumed_step is None else resumed_step
  log.keep(lambda line: line['step'] <= last)
  return log


def read_swaps(path: epath.PathLike) -> list[dict[str, Any]]:
  """The swaps of a workdir, in order."""
  return files.read_lines(epath.Path(path) / 'swaps.jsonl')


def plain(value: Any) -> Any:
  """A value as JSON has it: Python's own types, null for NaN and infinity."""
  if isinstance(value, Mapping):
    return {str(name): plain(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  if hasattr(value, '__array__'):
    return plain(np.asarray(value).tolist())
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  return value
