"""Who is there: leases on index versions, which keep them from being deleted.

`<workdir>/leases/<name>.json` says that a process reads some versions of the
workdir's index, or is its refresher. On the machine of who asks, the kernel
knows whether the process lives: it holds a lock on the file. On another machine
the lease must have been touched within minutes, by the clock of the file system
that both look at: no machine's own clock matters.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from realm_jax.workdir import files

_BEAT_SECONDS = 60.0
_EXPIRY_SECONDS = 900.0  # many beats: a machine may hang, a store be slow
_CLOCK = '.clock'


class Lease:
  """A lease of this process; see `hold`."""

  def __init__(self, workdir: epath.PathLike, role: str):
    self._directory = epath.Path(workdir) / 'leases'
    self._role = role
    self._held: tuple[epath.Path, Any] | None = None
    self._done = threading.Event()
    self._beats = threading.Thread(target=self._beat, daemon=True)
    self._text = ''
    self._lock = threading.Lock()  # of both, between the beats and who takes

  def take(self, versions: Iterable[int] = ()) -> None:
    """Takes a lease on versions; the one taken before ends after it."""
    if not _writable(self._directory):
      return
    text = json.dumps(
      {
        'role': self._role,
        'versions': sorted(versions),
        'process': os.getpid(),
        'host': socket.gethostname(),
        'kernel': _kernel(),
      }
    )
    path = self._directory / f'{self._role}-{uuid.uuid4().hex}.json'
    with self._lock:
      before = self._held
      self._held = path, _write_locked(path, text)
      self._text = text
    if before:
      _drop(*before)
    if not self._beats.is_alive():
      self._beats.start()

  @property
  def name(self) -> str:
    """Its file's; empty: none could be written."""
    return self._held[0].name if self._held else ''

  def end(self) -> None:
    self._done.set()
    if self._beats.is_alive():
      self._beats.join()
    if self._held:
      _drop(*self._held)
    self._held = None

  def _beat(self) -> None:
    while not self._done.wait(_BEAT_SECONDS):
      # A store that does not answer may by the next beat. What that raises is
      # up to the store: gcsfs has errors of its own.
      with contextlib.suppress(Exception), self._lock:
        if not self._held:
          continue
        path, file = self._held
        if not files.is_local(path):
          path.write_text(self._text)
        elif path.exists():
          os.utime(path)
        else:  # taken for dead: this machine slept, or a clock leapt
          self._held = path, _write_locked(path, self._text)
          file.close()


@contextlib.contextmanager
def hold(
  workdir: epath.PathLike, role: str, versions: Iterable[int] = ()
) -> Iterator[Lease]:
  """Holds a lease for as long as the context.

  Args:
    workdir: whose index is read.
    role: 'reader' or 'refresher'.
    versions: that must not be deleted meanwhile. Whoever takes a lease looks
      afterwards whether they are still there.
  """
  lease = Lease(workdir, role)
  try:
    lease.take(versions)
    yield lease
  finally:
    lease.end()


def living(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """The leases of processes that live, as they wrote them, and their names.

  What dead processes left is deleted.
  """
  directory = epath.Path(workdir) / 'leases'
  if not directory.exists():
    return []
  found = []
  now: float | None = None
  for path in directory.iterdir():
    if path.suffix != '.json':
      continue
    half = path.name.startswith('.')  # being written, or by one that died
    try:
      lease = {} if half else _read(path)
      half = half or not lease
      if files.is_local(path) and lease.get('kernel') == _kernel():
        lives = _is_locked(path)
      else:
        now = _file_time(directory) if now is None else now
        lives = now - path.stat().mtime < _EXPIRY_SECONDS
    except FileNotFoundError:
      continue  # ended just now
    if not lives:
      path.unlink(missing_ok=True)
    elif not half:
      found.append(lease | {'name': path.name})
  return found


def leased(workdir: epath.PathLike) -> set[int]:
  """Versions that living processes read."""
  return {version for lease in living(workdir) for version in lease['versions']}


def refresher_lives(workdir: epath.PathLike) -> bool:
  return bool(refreshers(workdir))


def refreshers(workdir: epath.PathLike) -> list[str]:
  """The names of the leases of refreshers that live, in order."""
  return sorted(
    lease['name'] for lease in living(workdir) if lease['role'] == 'refresher'
  )


def _writable(directory: epath.Path) -> bool:
  """Makes the directory; False in a workdir that this process may only read.

  There the reader does without, as readers of a copy on a read-only disk must.
  """
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except PermissionError:
    return False
  except OSError as error:
    if error.errno == errno.EROFS:
      return False
    raise
  return not files.is_local(directory) or os.access(directory, os.W_OK)


def _write_locked(path: epath.Path, text: str) -> Any:
  """Writes a file that appears whole and locked; returns what holds it."""
  if not files.is_local(path):
    path.write_text(text)
    return None
  temporary = path.parent / f'.{path.name}'
  file = open(temporary, 'w', encoding='utf-8')  # noqa: SIM115
  try:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(text)
    file.flush()
    os.replace(temporary, path)
  except OSError:
    file.close()
    temporary.unlink(missing_ok=True)
    raise
  return file


def _drop(path: epath.Path, file: Any) -> None:
  path.unlink(missing_ok=True)
  if file is not None:
    file.close()


def _read(path: epath.Path) -> dict[str, Any]:
  """A lease; empty: it was torn when its machine, and its process, died."""
  try:
    return files.read_json(path)
  except ValueError:
    return {}


def _is_locked(path: epath.Path) -> bool:
  with open(path, encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
  return False


def _file_time(directory: epath.Path) -> float:
  """What time the file system says it is."""
  clock = directory / _CLOCK
  clock.write_text('')
  return clock.stat().mtime


def _kernel() -> str:
  """This machine since it was started: who shares it can see its locks."""
  file = epath.Path('/proc/sys/kernel/random/boot_id')
  return file.read_text().strip() if file.exists() else socket.gethostname()
