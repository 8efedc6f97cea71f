"""Parts of a long job that are done once, however often it is started."""

import os
import time
from collections.abc import Callable
from typing import Any

from realm_jax.workdir import files


class Progress:
  """`progress.json`: what each part of a job came to.

  Args:
    directory: of the job; made if absent.
    settings: flags of the job; one that goes on must be given the same.

  Raises:
    ValueError: the directory holds a job of other settings, or other files.
  """

  def __init__(self, directory: str, settings: dict[str, Any]):
    self._file = os.path.join(directory, 'progress.json')
    self._settings = settings
    self._done: dict[str, Any] = {}
    self._seconds = 0.0
    self._since = time.monotonic()
    if not os.path.exists(self._file):
      if os.path.isfile(directory):
        raise ValueError(
          f'--workdir {directory}: is a file, expected a directory'
        )
      if os.path.isdir(directory) and os.listdir(directory):
        raise ValueError(
          f'--workdir {directory}: is not empty, and has no progress.json to '
          'go on from; give another'
        )
      os.makedirs(directory, exist_ok=True)
      self._write()
      return
    found = files.read_json(self._file)
    if found['settings'] != settings:
      flags = ' '.join(f'--{k} {v}' for k, v in found['settings'].items())
      raise ValueError(
        f'--workdir {directory}: was begun with {flags}; give the same, or '
        'another workdir'
      )
    self._done, self._seconds = found['done'], found['seconds']

  def once(self, name: str, make: Callable[[], Any]) -> Any:
    """What a part came to, a value of JSON; made if it is not done yet."""
    if name not in self._done:
      self._done[name] = make()
      now = time.monotonic()
      self._seconds, self._since = self._seconds + now - self._since, now
      self._write()
    return self._done[name]

  def seconds(self) -> float:
    """That the parts took, whenever they were made."""
    return round(self._seconds, 1)

  def _write(self) -> None:
    files.write_json(
      self._file,
      {
        'settings': self._settings,
        'seconds': self._seconds,
        'done': self._done,
      },
    )
