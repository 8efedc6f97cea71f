"""Profiler traces of chosen steps (`--profile=10,20`)."""

import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax
from etils import epath

from realm_jax.parallel import processes


class Profile:
  """Runs steps, and writes a trace of those that were chosen.

  Process 0 alone writes: a trace is tens of megabytes, and the wait for the
  others shows in its collectives. A traced step has the device for itself: it
  starts when what it takes is ready, and its result is waited for; so its
  `examples_per_second` says nothing.

  Args:
    path: of the workdir; a trace is `profile/<step>/plugins/profile/...`
      under it, which TensorBoard and xprof show.
    steps: counted from 1, as in metrics.jsonl.
  """

  def __init__(self, path: epath.PathLike, steps: Iterable[int] = ()):
    self._path = epath.Path(path) / 'profile'
    self._left = set(steps) if processes.is_first() else set()

  def run(self, step: int, function: Callable[..., Any], *args: Any) -> Any:
    """Calls `function(*args)`, which is step number `step`."""
    if step not in self._left:
      return function(*args)
    self._left.remove(step)
    jax.block_until_ready(args)
    # The profiler writes to local disks alone; a workdir may be in a bucket.
    with tempfile.TemporaryDirectory() as local:
      with jax.profiler.trace(local):
        result = jax.block_until_ready(function(*args))
      for file in filter(pathlib.Path.is_file, pathlib.Path(local).rglob('*')):
        copy = self._path / str(step) / file.relative_to(local)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return result

  def end(self) -> None:
    """Says which steps were never reached."""
    if self._left:
      steps = ', '.join(map(str, sorted(self._left)))
      processes.say(f'--profile: this run did not take step {steps}: no trace')
