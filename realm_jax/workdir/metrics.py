"""metrics.jsonl, swaps.jsonl and TensorBoard events of a run."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from realm_jax.workdir import files

_FLUSH_SECONDS = 30.0  # of events


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
    self._events = _Events(
      path, 0 if resumed_step is None else resumed_step + 1
    )

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes one line at once, and the numbers in it as events.

    Args:
      step: the step that the values are of.
      values: scalars (also of numpy and jax), text, lists of scalars; numbers
        that are not finite are written as null.
    """
    line = {name: plain(v) for name, v in values.items()}
    self._lines.append({'step': step} | line)
    numbers = {
      name: value
      for name, value in line.items()
      if isinstance(value, int | float) and not isinstance(value, bool)
    }
    self._events.write(step, numbers)

  def close(self) -> None:
    self._events.close()


class _Events:
  """TensorBoard's file. A run goes on without it: its lines are the record.

  tensorboardX's own SummaryWriter writes in a thread; once that has failed, who
  writes waits for it forever.

  Args:
    path: the workdir.
    first: events of this step and later ones, of a run that died, are void.
  """

  def __init__(self, path: epath.Path, first: int):
    self._writer: EventsWriter | None = None
    self._flushed = time.monotonic()
    with self._told():
      self._writer = EventsWriter(str(path / 'events'))
      start = SessionLog(status=SessionLog.START)
      self._writer.write_event(
        Event(wall_time=time.time(), step=first, session_log=start)
      )

  def write(self, step: int, numbers: dict[str, float]) -> None:
    with self._told():
      if self._writer is None:
        return
      values = [
        Summary.Value(tag=name, simple_value=number)
        for name, number in numbers.items()
      ]
      self._writer.write_event(
        Event(wall_time=time.time(), step=step, summary=Summary(value=values))
      )
      if time.monotonic() - self._flushed > _FLUSH_SECONDS:
        self._writer.flush()  # a bucket takes the whole file each time
        self._flushed = time.monotonic()

  def close(self) -> None:
    with self._told():
      if self._writer is not None:
        self._writer.close()

  @contextlib.contextmanager
  def _told(self) -> Iterator[None]:
    """An error, of whatever kind the store has, ends the events alone."""
    try:
      yield
    except Exception as error:
      writer, self._writer = self._writer, None
      if writer is not None:
        with contextlib.suppress(Exception):
          writer.close()
      print(f'no more TensorBoard events: {error}', file=sys.stderr, flush=True)


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
