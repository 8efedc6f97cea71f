"""Following a workdir's index versions from beside the training loop."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from realm_jax.index import approximate
from realm_jax.parallel import processes
from realm_jax.workdir import rows as rows_lib
from realm_jax.workdir import versions

# A decision is kept for the processes that come to its step later.
_KEPT_STEPS = 4096


class Ready(NamedTuple):
  """A version that was read; each process has its own rows of it."""

  manifest: versions.Manifest
  start: int  # the first row read
  rows_nE: np.ndarray
  parts: approximate.Parts | None = None  # of the kind


class Follower:
  """Reads the newest suitable version in a thread of its own.

  The loop asks `take()` between two steps and never waits for a version. One
  that is damaged, foreign or deleted while it is read is reported and passed
  over.

  In a run of several processes the first one offers a version, all read their
  own rows of it, and when all have, the first one picks the step at which
  they swap. The others wait for its word at every step, which it gives when it
  comes to that step itself: they are never further apart than a step is long.

  Args:
    index: Workdir.index.
    after: the version in use; only newer ones are read.
    suitable: raises ValueError for a manifest that must not be used.
    local_rows: [start, stop) of this process's rows, of how many there are.
    poll_seconds: between two looks.
    read_parts: what the kind has beside the rows; runs in the thread.
  """

  def __init__(
    self,
    index: epath.PathLike,
    after: int,
    suitable: Callable[[versions.Manifest], None],
    local_rows: Callable[[int], tuple[int, int]],
    poll_seconds: float,
    read_parts: Callable[[versions.Manifest], Any] = lambda _: None,
  ):
    self._index = index
    self._seen = after
    self._suitable = suitable
    self._local_rows = local_rows
    self._read_parts = read_parts
    self._poll_seconds = poll_seconds
    self._lock = threading.Lock()
    # By version: a process may be asked to read the next one before its loop
    # has come to the step that takes this one.
    self._read: dict[int, Ready] = {}
    self._ready: int | None = None  # of the first process: all have read it
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def take(self, step: int) -> Ready | None:
    """A version that all have read since the last one, or None.

    Args:
      step: the loop's; asked at every step, by all processes.
    """
    version = None
    if processes.is_first():
      with self._lock:
        version, self._ready = self._ready, None
      if not processes.alone():
        processes.tell(f'swap/{step}', version)
        if step > _KEPT_STEPS:
          processes.forget(f'swap/{step - _KEPT_STEPS}')
    else:
      version = processes.wait_for(f'swap/{step}')
    if version is None:
      return None
    with self._lock:
      ready = self._read.pop(version)
      for older in [number for number in self._read if number < version]:
        del self._read[older]
    return ready

  def close(self) -> None:
    self._stop.set()
    self._thread.join()

  def _run(self) -> None:
    try:
      self._follow()
    except jax.errors.JaxRuntimeError:
      return  # the first process is gone; the watch ends this one

  def _follow(self) -> None:
    while not self._stop.wait(self._poll_seconds):
      version = self._offered()
      if version is None:
        continue
      self._seen = version
      error = None
      try:
        ready = self._read_own(version)
        with self._lock:
          self._read[version] = ready
      except (ValueError, OSError) as problem:
        error = str(problem)
        print(f'index version {version} passed over: {error}', file=sys.stderr)
      if self._all_have(version, error) and processes.is_first():
        with self._lock:
          self._ready = version

  def _offered(self) -> int | None:
    """A version to read now: the newest, or what the first process says."""
    if not processes.is_first():
      offered = processes.ask('index/offer')
      return offered if offered and offered > self._seen else None
    with self._lock:
      if self._ready is not None:
        return None  # the loop has not taken the last one yet
    newest = max(versions.list_versions(self._index), default=0)
    if newest <= self._seen:
      return None
    processes.tell('index/offer', newest)
    return newest

  def _read_own(self, version: int) -> Ready:
    manifest = versions.read_manifest(self._index, version)
    self._suitable(manifest)
    start, stop = self._local_rows(manifest.rows)
    rows_nE = rows_lib.read_rows(self._index, version, start, stop)
    return Ready(manifest, start, rows_nE, self._read_parts(manifest))

  def _all_have(self, version: int, error: str | None) -> bool:
    """Whether all processes could read their rows; the first one waits."""
    if processes.alone():
      return error is None
    key = f'index/read/{version}/'
    processes.tell(f'{key}{jax.process_index()}', error)
    found: list[str | None] = []
    while processes.is_first() and len(found) < jax.process_count():
      if self._stop.is_set():
        return False
      time.sleep(self._poll_seconds)
      found = processes.told_by_all(key)
    return not any(found)
