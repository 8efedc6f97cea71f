"""SIGTERM: all processes of a run stop at one step."""

import contextlib
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class Stopped(BaseException):
  """SIGTERM came where there is nothing to save."""


@contextlib.contextmanager
def stopped_at_once() -> Iterator[None]:
  """SIGTERM ends what is in hand, such as a first index that is built.

  One of several processes goes on to its first step: JAX's preemption service
  has the signal, and all of them are to stop there together.
  """
  if jax.process_count() > 1:
    yield
    return

  came = False

  def stop(*_: object) -> None:
    nonlocal came
    came = True
    raise Stopped

  previous = signal.signal(signal.SIGTERM, stop)
  try:
    yield
    if came:  # Python drops what is raised in a finaliser
      raise Stopped
  finally:
    signal.signal(signal.SIGTERM, previous)


class Terminated:
  """Whether SIGTERM came; the loop saves and ends at the next step.

  Several processes have JAX's preemption service listen: it makes all of them
  stop at one step, whichever got the signal.
  """

  def __init__(self) -> None:
    self._came = False
    self._asked = 0

  def __enter__(self) -> 'Terminated':
    self._alone = jax.process_count() == 1
    if self._alone:
      self._previous = signal.signal(signal.SIGTERM, self._set)
    return self

  def __exit__(self, *_: object) -> None:
    if self._alone:
      signal.signal(signal.SIGTERM, self._previous)

  def now(self) -> bool:
    """Whether to stop here; asked equally often by all processes."""
    self._asked += 1
    if not self._alone and not self._came:
      self._came = multihost_utils.reached_preemption_sync_point(self._asked)
    return self._came

  def _set(self, *_: object) -> None:
    self._came = True
