"""A copy of the launchers, beside commands that stand in for the real ones."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


class Project:
  """A root with launch/ alone, and bin/ in front of PATH."""

  def __init__(self, path):
    self.path = path
    shutil.copytree(ROOT / 'launch', path / 'launch')

  def command(self, name, text, folder='bin'):
    """Makes a command; `$calls` in it is the file that `calls` reads."""
    file = self.path / folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'#!/bin/bash\ncalls={self.path}/calls\n{text}\n')
    file.chmod(0o755)

  def record(self, name):
    self.command(name, 'echo "$(basename "$0") $*" >> $calls')

  def calls(self):
    file = self.path / 'calls'
    return file.read_text().splitlines() if file.exists() else []

  def start(self, script, *arguments, **environment):
    # `python` is that of the environment, as of an installed project's.
    python = pathlib.Path(sys.executable).parent
    path = f'{self.path}/bin:{os.environ["PATH"]}:{python}'
    # Tests that a shell runs in its background ignore it, and so would this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
      ['bash', f'launch/{script}', *arguments],
      cwd=self.path,
      env={**os.environ, **environment, 'PATH': path},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def run(self, script, *arguments, **environment):
    """Its exit status, standard output and standard error."""
    process = self.start(script, *arguments, **environment)
    try:
      out, err = process.communicate(timeout=300)
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its children too
    return process.returncode, out, err

  def fails(self, script, *arguments):
    """The one line of bad usage."""
    status, out, err = self.run(script, *arguments)
    assert (status, out, err.count('\n')) == (2, '', 1), err
    assert not self.calls()
    return err


@pytest.fixture
def project(tmp_path):
  return Project(tmp_path)
