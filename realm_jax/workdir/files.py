"""Small files of a run: JSON written whole, JSON lines appended, locks.

Paths are `etils.epath`, so `gs://` and local disk are one code path; locks
exist on local paths only (a bucket has none).
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
from etils import epath

# gcsfs keeps a directory's names once it has listed them: what other processes
# publish there later it would never see.
fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False


def is_local(path: epath.PathLike) -> bool:
  return '://' not in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
  """The path as Orbax and TensorStore want it; `gs://` is absolute already."""
  return epath.Path(path).resolve() if is_local(path) else epath.Path(path)


def write_json(path: epath.PathLike, value: Any) -> None:
  """Writes a JSON file so that a reader sees the old one or the new one."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def write_text(path: epath.PathLike, text: str) -> None:
  """Replaces a file in one move, on disk before it has its name."""
  write_bytes(path, text.encode())


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Replaces a file in one move, on disk before it has its name."""
  path = epath.Path(path)
  if not is_local(path):
    path.write_bytes(data)  # an object appears whole or not at all
    return
  temporary = path.parent / f'.{path.name}.tmp'  # one writer: one name
  try:
    with open(temporary, 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError:
    temporary.unlink(missing_ok=True)  # a full disk must not leak files
    raise
  sync_directory(path.parent)


def remove_half_written(path: epath.PathLike) -> None:
  """Deletes what `write_bytes` left in a directory when it was killed."""
  if is_local(path):
    for temporary in epath.Path(path).glob('.*.tmp'):
      temporary.unlink()


def sync_directory(path: epath.PathLike) -> None:
  """Puts the names in a local directory on disk."""
  if not is_local(path):
    return
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def read_json(path: epath.PathLike) -> Any:
  """Reads a JSON file; ValueError names the file when it is not JSON."""
  try:
    return json.loads(epath.Path(path).read_text())
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f'{path}: not a JSON file ({error})') from error


class LineLog:
  """An append-only file of JSON objects, one a line, with one writer.

  A line that was cut off by a crash is dropped when the file is opened.
  """

  def __init__(self, path: epath.PathLike):
    self.path = epath.Path(path)
    if self.path.exists():
      text = self.path.read_text()
      if not text.endswith('\n') and text:
        write_text(self.path, text[: text.rfind('\n') + 1])

  def append(self, value: dict[str, Any]) -> None:
    """Appends one line; other processes see it when this returns."""
    line = json.dumps(value, allow_nan=False) + '\n'
    if is_local(self.path):
      data = line.encode()
      with open(self.path, 'ab', buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
          if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        except OSError:
          file.truncate(size)  # half a line would spoil the next one
          raise
    else:  # objects cannot grow
      old = self.path.read_text() if self.path.exists() else ''
      self.path.write_text(old + line)

  def keep(self, condition: Callable[[dict[str, Any]], bool]) -> None:
    """Drops, in one move, the lines for which `condition` is false."""
    lines = read_lines(self.path)
    kept = [line for line in lines if condition(line)]
    if len(kept) != len(lines):
      write_text(self.path, ''.join(json.dumps(line) + '\n' for line in kept))


def read_lines(path: epath.PathLike) -> list[dict[str, Any]]:
  """Reads a file of JSON objects that a writer may be appending to.

  Args:
    path: the file; one that does not exist has no lines.

  Returns:
    The objects. A last line without its end is not there yet.

  Raises:
    ValueError: a line is not a JSON object; names the file and the line.
  """
  path = epath.Path(path)
  if not path.exists():
    return []
  values = []
  for number, line in enumerate(path.read_text().split('\n')[:-1], 1):
    try:
      value = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f'{path}:{number}: not JSON ({error})') from error
    if not isinstance(value, dict):
      raise ValueError(f'{path}:{number}: expected a JSON object')
    values.append(value)
  return values


class Locked(ValueError):
  """Another process holds a lock."""


@contextlib.contextmanager
def lock(path: epath.PathLike, role: str) -> Iterator[None]:
  """Holds an exclusive lock on a directory for as long as the context.

  The kernel lets it go when the process ends, also by kill -9.

  Args:
    path: a directory; not local: nothing is locked.
    role: who holds it; each role has a lock of its own.

  Raises:
    Locked: another process (or this one) holds it; says which.
  """
  if not is_local(path):
    yield
    return
  with open(epath.Path(path) / f'.{role}.lock', 'a+', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      raise Locked(
        f'another {role} is running in {path} ({file.read().strip()}); wait '
        f'for it or stop it'
      ) from error
    # The file stays: to delete it could split a lock in two.
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    yield


# Stands in a directory until the file that completes it does.
_MARK = 'incomplete'


@contextlib.contextmanager
def new_directory(path: epath.PathLike, flag: str, last: str) -> Iterator[None]:
  """Holds a directory until it is complete; empties it on failure.

  Args:
    path: made if absent. What a killed process left there is cleared; any other
      content is refused.
    flag: of the command line that names it, for messages.
    last: the file that is written last; it completes the directory.

  Raises:
    ValueError: it is a file, or holds something else.
  """
  directory = epath.Path(path)
  if directory.exists() and not directory.is_dir():
    raise ValueError(f'{flag} {path}: is a file, expected a directory')
  mark = directory / _MARK
  if directory.exists() and any(directory.iterdir()) and not mark.exists():
    raise ValueError(
      f'{flag} {path}: holds files of something else; choose another directory'
    )
  made = not directory.exists()
  directory.mkdir(parents=True, exist_ok=True)
  # First the mark: from here on all in the directory is ours.
  mark.touch()
  with lock(path, 'writer'):
    if (directory / last).exists():
      mark.unlink()
      raise ValueError(f'{flag} {path}: was made by another process now')
    _clear(directory)  # what a killed process left
    try:
      yield
    except BaseException:
      _clear(directory)
      for file in list(directory.iterdir()):
        file.unlink()  # mark and lock
      if made:
        directory.rmdir()
      raise
    mark.unlink()


def _clear(directory: epath.Path) -> None:
  """Deletes all but the mark and locks."""
  for child in list(directory.iterdir()):
    if child.is_dir():
      child.rmtree()
    elif child.name != _MARK and not child.name.endswith('.lock'):
      child.unlink()
