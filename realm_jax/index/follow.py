"""Following a workdir's index versions from beside the training loop."""

import sys
import threading
from collections.abc import Callable

import numpy as np
from etils import epath

from realm_jax.workdir import rows as rows_lib
from realm_jax.workdir import versions


class Follower:
  """Reads the newest suitable version in a thread of its own.

  The loop asks `take()` between two steps and never waits. A version that is
  damaged, foreign or deleted while it is read is reported and passed over.

  Args:
    index: Workdir.index.
    after: the version in use; only newer ones are read.
    suitable: raises ValueError for a manifest that must not be used.
    poll_seconds: between two looks.
  """

  def __init__(
    self,
    index: epath.PathLike,
    after: int,
    suitable: Callable[[versions.Manifest], None],
    poll_seconds: float,
  ):
    self._index = index
    self._seen = after
    self._suitable = suitable
    self._poll_seconds = poll_seconds
    self._lock = threading.Lock()
    self._ready: tuple[versions.Manifest, np.ndarray] | None = None
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def take(self) -> tuple[versions.Manifest, np.ndarray] | None:
    """A version that has been read since the last call, or None."""
    with self._lock:
      ready, self._ready = self._ready, None
      return ready

  def close(self) -> None:
    self._stop.set()
    self._thread.join()

  def _run(self) -> None:
    while not self._stop.wait(self._poll_seconds):
      newest = max(versions.list_versions(self._index), default=0)
      if newest <= self._seen:
        continue
      self._seen = newest
      try:
        manifest = versions.read_manifest(self._index, newest)
        self._suitable(manifest)
        rows_NE = rows_lib.read_rows(self._index, newest, 0, manifest.rows)
      except (ValueError, OSError) as error:
        print(f'index version {newest} passed over: {error}', file=sys.stderr)
        continue
      with self._lock:
        self._ready = (manifest, rows_NE)
