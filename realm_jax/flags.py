"""How flags are written: the parser, and the flags that verbs share."""

import argparse
import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any, NoReturn

from realm_jax import config as config_lib

# A key in config.py, and the comment on its line.
_FIELD = re.compile(
  r'^(  # .*)$|^  (\w+): [^=]*= [^#\n]*?(  # .*)?$', re.MULTILINE
)


def take_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
  """Splits `--config.a.b=v` and `--config.a.b v` from the other arguments."""
  rest: list[str] = []
  overrides: dict[str, str] = {}
  arguments = iter(argv)
  for argument in arguments:
    if argument == '--':
      return [*rest, argument, *arguments], overrides
    if not argument.startswith('--config.'):
      rest.append(argument)
      continue
    key, equals, value = argument.removeprefix('--config.').partition('=')
    if not equals:
      value = next(arguments, '--')
      if value.startswith('--'):
        raise ValueError(f'--config.{key}: needs a value, --config.{key}=VALUE')
    overrides[key] = value
  return rest, overrides


class _Help(argparse.RawDescriptionHelpFormatter):
  """Shows each flag's default, unless its help text tells it."""

  def _get_help_string(self, action: argparse.Action) -> str:
    text = action.help or ''
    if not action.option_strings or action.default is argparse.SUPPRESS:
      return text
    if action.required:
      return f'{text} (required)'
    return text if 'default' in text else f'{text} (default: %(default)s)'


class Parser(argparse.ArgumentParser):
  """A parser whose errors are one line, printed by main."""

  def __init__(self, **options: Any) -> None:
    super().__init__(formatter_class=_Help, allow_abbrev=False, **options)
    self.add_argument(
      '--debug', action='store_true', help='show the traceback of an error'
    )

  def error(self, message: str) -> NoReturn:
    raise ValueError(f'{message}; see {self.prog} --help')


def flag(parser: Any, form: str, help: str, **options: Any) -> None:
  """Adds a flag written as its help shows it: `--name` or `--name VALUE`."""
  name, _, metavar = form.partition(' ')
  if metavar:
    options['metavar'] = metavar
  parser.add_argument(name, help=help, **options)


def need(parser: Any, form: str, help: str, **options: Any) -> None:
  flag(parser, form, help, required=True, **options)


def need_workdir(verb: Parser, dest: str = 'workdir') -> None:
  need(verb, '--workdir DIR', 'directory of the run', dest=dest)


def step(verb: Parser) -> None:
  help = 'of the checkpoint (default: newest; fine-tuning: best on dev)'
  flag(verb, '--step N', help, type=int)


def checkpoint(verb: Parser) -> None:
  """The flags that choose a checkpoint of the workdir, and its index."""
  step(verb)
  help = 'default: the newest that is not newer than the checkpoint'
  flag(verb, '--index_version N', help, type=int)
  help = 'accept an index that an earlier checkpoint made'
  flag(verb, '--allow_stale_index', help, action='store_true')


def profile(verb: Parser) -> None:
  help = 'steps to write profiler traces of, WORKDIR/profile/N (default: none)'
  flag(verb, '--profile N[,N]...', help, type=_steps, default=())


def _steps(text: str) -> tuple[int, ...]:
  words = text.split(',')
  if not all(word.isascii() and word.isdigit() and int(word) for word in words):
    raise argparse.ArgumentTypeError(
      f'{text!r}: expected steps counted from 1, as in --profile=10,20'
    )
  return tuple(map(int, words))


def cluster(verb: Parser) -> None:
  """The flags that make several processes one run; see take_cluster."""
  group = verb.add_argument_group('several processes, each started like this')
  help = 'the cluster tells the rest (TPU pod, GKE; a process a device: Slurm, '
  help += 'Open MPI)'
  flag(group, '--distributed', help, action='store_true')
  flag(group, '--coordinator HOST:PORT', 'or: of process 0 (no default)')
  help = 'how many there are (no default)'
  flag(group, '--num-processes N', help, type=int)
  help = 'which one this is, from 0 (no default)'
  flag(group, '--process-id N', help, type=int)
  help = 'end a run in which no process gets on for so long'
  flag(group, '--hang-seconds S', help, type=float, default=900.0)


def take_cluster(flags: dict[str, Any]) -> dict[str, Any]:
  """Takes the flags of `cluster` out of the flags of a verb."""
  names = (
    *('distributed', 'coordinator', 'num_processes', 'process_id'),
    'hang_seconds',
  )
  return {name: flags.pop(name) for name in names if name in flags}


def need_inputs(verb: Parser) -> None:
  help = 'JSON lines (plain, .gz, .zst, .bz2) or tfds:NAME[/CONFIG][:SPLIT]'
  more = {'nargs': '+', 'action': 'extend', 'dest': 'inputs'}
  need(verb, '--input PATH', help, **more)
  formats = ('jsonl', 'wikiextractor', 'tfds')
  help = 'of inputs; wikiextractor: what it wrote with --json, a directory too'
  flag(verb, '--format', help, choices=formats, default='jsonl')


def need_config(verb: Parser) -> None:
  help = 'experiment file; override a key by --config.KEY=VALUE'
  need(verb, '--config FILE.py[:ARG]', help)

  verb.epilog = f'config keys and their defaults:\n{_config_keys()}'


@functools.cache
def _config_keys() -> str:
  """Every config key with its default, under the comments of config.py."""

  def lines(section: Any, prefix: str) -> Iterator[str]:
    source = inspect.getsource(type(section)).partition('\n  def ')[0]
    hints = typing.get_type_hints(type(section))
    for heading, name, comment in _FIELD.findall(source):
      if heading:
        yield heading
        continue
      value = getattr(section, name)
      if dataclasses.is_dataclass(value):
        yield f'\n  {inspect.getdoc(value)}'
        yield from lines(value, f'{prefix}{name}.')
        continue
      choices = typing.get_args(hints[name])
      choices = f'  {{{",".join(choices)}}}' if choices else ''
      yield f'  --config.{prefix}{name}={value}{choices}{comment}'

  return '\n'.join(lines(config_lib.Config(), ''))
