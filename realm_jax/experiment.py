"""Experiment files: what a run changes of the configuration.

An experiment file (`experiments/*.py`) has a `get_config(arg)` that returns an
`ml_collections.ConfigDict` (or a plain dict) of the keys it changes.
"""

import ast
import dataclasses
import importlib.util
import os
import sys
import traceback
import typing
from typing import Any, Literal, get_origin

from realm_jax import config as config_lib


def load(
  path: str, overrides: dict[str, str] | None = None
) -> config_lib.Config:
  """Reads an experiment file.

  Args:
    path: `FILE.py` or `FILE.py:ARG`; `get_config(ARG)` is called.
    overrides: dotted key to the text given on the command line.

  Returns:
    The validated configuration.

  Raises:
    ValueError: the file is not there, cannot be read as Python or has no
      get_config, or a key or value is wrong.
  """
  file, found, argument = path.partition('.py:')
  if found:
    file += '.py'
  if not os.path.isfile(file):
    what = 'is a directory' if os.path.isdir(file) else 'no such file'
    raise ValueError(f'--config {file}: {what}')
  spec = importlib.util.spec_from_file_location('realm_experiment', file)
  if spec is None or spec.loader is None:
    raise ValueError(f'--config {file}: not a Python file (FILE.py[:ARG])')
  module = importlib.util.module_from_spec(spec)
  # An experiment may import its neighbours.
  sys.path.insert(0, os.path.dirname(os.path.abspath(file)))
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
      raise ValueError('has no get_config(arg)')
    values = module.get_config(*([argument] if argument else []))
  except Exception as error:
    # A ValueError is what a get_config says of its argument, maybe.
    kind = '' if type(error) is ValueError else f'{type(error).__name__}: '
    raise ValueError(
      f'--config {file}{_line(error, spec.origin)}: {kind}{error}'
    ) from error
  finally:
    sys.path.pop(0)
  if hasattr(values, 'to_dict'):
    values = values.to_dict()
  if not isinstance(values, dict):
    raise ValueError(
      f'--config {file}: get_config gave {type(values).__name__}, expected an '
      'ml_collections.ConfigDict or a dict'
    )
  for key, text in (overrides or {}).items():
    _override(values, key, text)
  return config_lib.from_dict(values)


def _line(error: Exception, file: str | None) -> str:
  """Where in the file an error came up, as ` line 3`; nothing if elsewhere."""
  if isinstance(error, SyntaxError):
    return ''  # says it itself
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == file
  ]
  return f' line {lines[-1]}' if lines else ''


def _override(values: dict[str, Any], key: str, text: str) -> None:
  """Sets one dotted key from command-line text, typed by its field."""
  *sections, name = key.split('.')
  cls: Any = config_lib.Config
  for section in sections:
    cls = _field_type(cls, section, key)
    if not dataclasses.is_dataclass(cls):
      raise ValueError(f'--config.{key}: no such key')
    values = values.setdefault(section, {})
    if not isinstance(values, dict):
      raise ValueError(
        f'--config.{key}: {section} is {values!r} in the file, not a section'
      )
  kind = _field_type(cls, name, key)
  if dataclasses.is_dataclass(kind):
    raise ValueError(f'--config.{key}: is a section, set one of its keys')
  if kind is str or get_origin(kind) is Literal:
    values[name] = text
    return
  try:
    values[name] = ast.literal_eval(text.capitalize() if kind is bool else text)
  except (ValueError, SyntaxError) as error:
    raise ValueError(
      f'--config.{key}={text}: expected {config_lib.type_name(kind)}'
    ) from error


def _field_type(cls: type, name: str, key: str) -> Any:
  hints = typing.get_type_hints(cls)
  if name not in hints:
    raise config_lib.unknown_key(f'--config.{key}', name, hints)
  return hints[name]
