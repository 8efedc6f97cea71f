"""The command line: reads it, makes the one call, ends with its status.

Exit status: 0 done; 1 failed while running; 2 bad usage or bad input; 75
stopped by SIGTERM after saving. 1 and 2 come with one line on standard error.
"""

import argparse
import errno
import os
import sys
import traceback
from typing import Any

import realm_jax
from realm_jax.flags import Parser, take_cluster, take_overrides
from realm_jax.verbs import VERBS

_BAD_INPUT = (
  ValueError,
  FileNotFoundError,
  IsADirectoryError,
  NotADirectoryError,
  PermissionError,
)


def main(argv: list[str] | None = None) -> int:
  """Runs one verb.

  Args:
    argv: the arguments after the program's name; default: the process's.

  Returns:
    The exit status.
  """
  argv = sys.argv[1:] if argv is None else argv
  debug = '--debug' in argv
  processes: Any = None  # the module, where this is one of several
  try:
    argv, overrides = take_overrides(argv)
    known, unknown = _parser().parse_known_args(argv)
    if unknown:  # argparse's own message would send to the help of all verbs
      raise ValueError(
        f'unrecognized arguments: {" ".join(unknown)}; see realm {known.verb} '
        '--help'
      )
    flags = vars(known)
    if 'config' in flags:
      flags['overrides'] = overrides
    elif overrides:
      raise ValueError(
        f'--config.{next(iter(overrides))}: {flags["verb"]} takes no --config'
      )
    run = flags.pop('run')
    del flags['verb'], flags['debug']
    processes = _join(**take_cluster(flags))
    status, why = run(**flags), 'stopped by SIGTERM'
    sys.stdout.flush()
  except KeyboardInterrupt:
    status, why = 1, 'interrupted'
    print(f'error: {why}', file=sys.stderr)
  except Exception as error:
    if debug:
      traceback.print_exc()
    status, why = _status(error), _one_line(error)
    if processes is not None and status == 1:
      why = processes.explain(why)
    print(f'error: {why}', file=sys.stderr)
    _drop_unwritten_output()
  if processes is not None:
    processes.end(status, why)
  return status


def _join(**cluster: Any) -> Any:
  """Makes this process one of several where flags say so."""
  hang_seconds = cluster.pop('hang_seconds', None)
  if all(value is None or value is False for value in cluster.values()):
    return None
  from realm_jax.parallel import processes

  # Gloo writes to file 1 behind Python's back: it goes to standard error.
  output = os.dup(1)
  os.dup2(2, 1)
  processes.start(processes.Cluster(**cluster, hang_seconds=hang_seconds))
  if processes.is_first():  # what a run prints it prints once
    sys.stdout = os.fdopen(output, 'w')
  return processes


def _status(error: Exception) -> int:
  # TensorStore and Orbax report a full disk as a ValueError.
  if os.strerror(errno.ENOSPC) in str(error):
    return 1
  return 2 if isinstance(error, _BAD_INPUT) else 1


def _one_line(error: Exception) -> str:
  text = ' '.join(str(error).split())
  if isinstance(error, OSError) and error.filename:
    text = f'{error.filename}: {error.strerror}'
  elif not isinstance(error, ValueError | OSError):
    text = f'{type(error).__name__}: {text}'
  return text or type(error).__name__


def _drop_unwritten_output() -> None:
  """Keeps Python from failing once more on what it could not write."""
  try:
    sys.stdout.flush()
  except OSError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
  parser = Parser(prog='realm', description='Retrieval-augmented pre-training')
  version = f'realm {realm_jax.__version__}'
  parser.add_argument('--version', action='version', version=version)
  verbs = parser.add_subparsers(
    dest='verb', required=True, metavar='VERB', title='verbs'
  )
  for name, (help, declare) in VERBS.items():
    verb = verbs.add_parser(name, help=help, description=help)
    verb.set_defaults(run=declare(verb))
  return parser
