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
from realm_jax.workdir import leases, versions
from realm_jax.workdir import rows as rows_lib

# A decision is kept for the processes that come to it later.
_KEPT_CALLS = 4096
# Looked for in steps of this share of the time since the last version: a swap
# comes that much later at most, and a store is asked rarely where versions are.
_POLL_SHARE = 0.05
_LONGEST_POLL_SECONDS = 30.0
# A version that a store did not give is asked for again, each time later.
_LATER = 4
_LONGEST_RETRY_SECONDS = 300.0
# What a process that could not read a version tells of it.
_DAMAGED, _UNREAD, _UNSUITABLE = 'damaged', 'unread', 'unsuitable'


class Ready(NamedTuple):
  """A version that was read; each process has its own rows of it."""

  manifest: versions.Manifest
  start: int  # the first row read
  rows_nE: np.ndarray
  parts: approximate.Parts | None = None  # of the kind

  def read(self, start: int, stop: int) -> np.ndarray:
    return self.rows_nE[start - self.start : stop - self.start]


class Follower:
  """Reads the newest suitable version in a thread of its own.

  The loop asks `take()` between two steps and never waits for a version. One
  that is damaged, foreign or deleted while it is read is reported by the name
  of its file and passed over: the next newest one is read instead. A damaged
  one is set aside, so that the refresher makes another; one that could not be
  read is tried again later.

  In a run of several processes the first one offers a version, all read their
  own rows of it, and when all have, the first one picks the step at which
  they swap. The others wait for its word at every step, which it gives when it
  comes to that step itself: they are never further apart than a step is long.

  Args:
    index: Workdir.index.
    after: the version in use; only newer ones are read.
    suitable: raises ValueError for a manifest that must not be used.
    local_rows: [start, stop) of this process's rows, of how many there are.
    poll_seconds: between two looks, at first.
    keeps_up: a version that was not taken gives way to a newer one. For a loop
      that takes one now and then; one that takes each would wait longer.
    read_parts: what the kind has beside the rows; runs in the thread.
  """

  def __init__(
    self,
    index: epath.PathLike,
    after: int,
    suitable: Callable[[versions.Manifest], None],
    local_rows: Callable[[int], tuple[int, int]],
    poll_seconds: float,
    keeps_up: bool = False,
    read_parts: Callable[[versions.Manifest], Any] = lambda _: None,
  ):
    self._index = index
    self._keeps_up = keeps_up
    # Of the first process, which chooses:
    self._after = after
    self._bad: set[int] = set()
    self._unread: dict[int, tuple[int, float]] = {}  # tries, when again
    self._dropped: list[int] = []  # offers that nobody takes, not told yet
    self._lease = leases.Lease(epath.Path(index).parent, 'reader')
    self._ready: tuple[int, int] | None = None  # offer, version: all have it
    self._offers = 0  # made, or (not the first process) done with
    self._calls = 0
    self._suitable = suitable
    self._local_rows = local_rows
    self._read_parts = read_parts
    self._poll_seconds = poll_seconds
    self._lock = threading.Lock()
    # By offer: a process may be asked to read the next one before its loop has
    # come to the step that takes this one.
    self._read: dict[int, Ready] = {}
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def take(self) -> Ready | None:
    """A version that all have read since the last one, or None.

    Asked equally often by all processes.
    """
    self._calls += 1
    offer = None
    if processes.is_first():
      with self._lock:
        if self._ready is not None:
          offer, self._after = self._ready
        self._ready = None
      if not processes.alone():
        processes.tell(f'swap/{self._calls}', offer)
        if self._calls > _KEPT_CALLS:
          processes.forget(f'swap/{self._calls - _KEPT_CALLS}')
    else:
      offer = processes.wait_for(f'swap/{self._calls}')
    if offer is None:
      return None
    with self._lock:
      ready = self._read.pop(offer)
      for older in [number for number in self._read if number < offer]:
        del self._read[older]
    return ready

  def close(self) -> None:
    self._stop.set()
    self._thread.join()
    self._lease.end()

  def _run(self) -> None:
    self._began, said = time.monotonic(), ''
    while not self._stop.wait(self._wait_seconds()):
      try:
        self._look()
      except Exception as problem:
        # A store or a service that does not answer may yet. (Without the first
        # process the watch ends this one.)
        if str(problem) != said:
          said = str(problem)
          print(f'index versions: {said}; looked at again', file=sys.stderr)

  def _look(self) -> None:
    offered = self._offered()
    if offered is None:
      return
    self._began = time.monotonic()
    number, version = offered
    problem = None
    try:
      ready = self._read_own(version)
      with self._lock:
        self._read[number] = ready
    except Exception as error:
      # Whatever it is, training goes on; the staleness tells of it too.
      problem = _kind(error)
      print(
        f'index version {version} passed over: {str(error) or repr(error)}',
        file=sys.stderr,
      )
    if not processes.is_first():
      processes.tell(f'index/read/{number}/{jax.process_index()}', problem)
      self._offers = number
    else:
      self._decide(number, version, self._problems(number, problem))

  def _decide(self, offer: int, version: int, problems: list[str]) -> None:
    """What becomes of a version that all processes have tried to read."""
    if not problems:
      with self._lock:
        self._ready = offer, version
      return
    with self._lock:
      self._drop(offer)
    if _DAMAGED in problems:
      versions.set_aside(self._index, version)
      self._bad.add(version)
    elif _UNSUITABLE in problems:
      self._bad.add(version)
    else:
      tries = self._unread.get(version, (0, 0.0))[0] + 1
      seconds = self._poll_seconds * _LATER ** min(tries, 10)
      again = time.monotonic() + min(seconds, _LONGEST_RETRY_SECONDS)
      self._unread[version] = tries, again

  def _drop(self, offer: int) -> None:
    """Forgets what was read of an offer that will not be taken."""
    self._read.pop(offer, None)
    self._dropped.append(offer)

  def _wait_seconds(self) -> float:
    passed = (time.monotonic() - self._began) * _POLL_SHARE
    return min(max(self._poll_seconds, passed), _LONGEST_POLL_SECONDS)

  def _offered(self) -> tuple[int, int] | None:
    """A version to read now, and the number of the offer.

    The first process says which: the newest that it has not found bad, nor
    asked for in vain just now.
    """
    if not processes.is_first():
      offered = processes.ask('index/offer')
      if offered is None or offered[0] == self._offers:
        return None
      number, version, dropped = offered
      with self._lock:
        for offer in dropped:
          self._read.pop(offer, None)
      return number, version
    with self._lock:
      if self._ready is not None and not self._keeps_up:
        return None  # the loop has not taken the last one yet
    now = time.monotonic()
    later = {v for v, (_, again) in self._unread.items() if now < again}
    there = set(versions.list_versions(self._index)) - self._bad - later
    newest = max(there, default=0)
    with self._lock:
      if newest <= (self._ready[1] if self._ready else self._after):
        return None
    # Nobody prunes it while it is read, nor the one before, which the loop may
    # have taken just now, until that is in use.
    self._lease.take({self._after, newest})
    if newest not in versions.list_versions(self._index):
      return None
    with self._lock:
      if self._ready:  # two of them would need room
        self._drop(self._ready[0])
        self._ready = None
    self._offers += 1
    processes.tell('index/offer', [self._offers, newest, self._dropped])
    self._dropped = []
    return self._offers, newest

  def _read_own(self, version: int) -> Ready:
    manifest = versions.read_manifest(self._index, version)
    self._suitable(manifest)
    start, stop = self._local_rows(manifest.rows)
    rows_nE = rows_lib.read_rows(self._index, version, start, stop)
    return Ready(manifest, start, rows_nE, self._read_parts(manifest))

  def _problems(self, offer: int, problem: str | None) -> list[str]:
    """What kept processes from reading their rows; the first one waits."""
    if processes.alone():
      return [problem] if problem else []
    key = f'index/read/{offer}/'
    processes.tell(f'{key}{jax.process_index()}', problem)
    found: list[str | None] = []
    while len(found) < jax.process_count():
      if self._stop.is_set():
        return [_UNREAD]
      time.sleep(self._poll_seconds)
      found = processes.told_by_all(key)
    processes.forget(key)
    return [problem for problem in found if problem]


def _kind(error: Exception) -> str:
  if isinstance(error, versions.Damaged):
    return _DAMAGED
  return _UNREAD if isinstance(error, OSError) else _UNSUITABLE
