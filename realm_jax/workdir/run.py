"""The directory of one training stage, and who may write in it."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from etils import epath

from realm_jax import config as config_lib
from realm_jax.parallel import processes
from realm_jax.workdir import checkpoints, files

# What a checkpoint is made of or trained on: to change it is another run.
_FIXED = (
  *('corpus', 'text_corpus', 'pooling', 'seed', 'batch_size'),
  'train_document_embedder',
)
_PATHS = (
  *('corpus', 'text_corpus', 'questions', 'dev_questions'),
  *('init_from', 'index_from'),
)


class Workdir:
  """Paths and identity of a stage on disk; made by `create` or `open`.

  Attributes:
    path: the directory.
    stage: the verb that trains here: mlm, ict, pretrain or finetune.
    config: the configuration in config.json.
  """

  def __init__(self, path: epath.Path, stage: str, config: config_lib.Config):
    self.path = path
    self.stage = stage
    self.config = config

  @classmethod
  def create(
    cls, path: epath.PathLike, stage: str, config: config_lib.Config
  ) -> 'Workdir':
    """Makes the workdir of a stage, as `held` does, without holding it."""
    with cls.held(path, stage, config) as workdir:
      return workdir

  @classmethod
  @contextlib.contextmanager
  def held(
    cls, path: epath.PathLike, stage: str, config: config_lib.Config
  ) -> Iterator['Workdir']:
    """Makes the workdir of a stage, or takes up the one that is there.

    Called by one process, which has the trainer's lock as long as the context:
    a second trainer must not change the config of the first.

    Args:
      path: the directory; made if absent.
      stage: the verb.
      config: on resuming, its other values replace those in config.json, but
        model.*, corpus, text_corpus, pooling, seed, batch_size and
        train_document_embedder must be the same.

    Yields:
      The workdir, config.json written.

    Raises:
      ValueError: another stage or another model or corpus is there, or a
        trainer is running; both values are named.
    """
    path = epath.Path(path)
    if path.exists() and not path.is_dir():
      raise ValueError(f'{path}: is a file, expected a directory')
    path.mkdir(parents=True, exist_ok=True)
    with files.lock(path, 'trainer'):
      files.remove_half_written(path)
      if (path / 'config.json').exists():
        old = cls.open(path)
        if old.stage != stage:
          raise ValueError(
            f'{path}: holds the stage {old.stage}, not {stage}; give {stage} '
            f'a workdir of its own'
          )
        _check_same(path, old.config.to_dict(), config.to_dict())
        done = max(checkpoints.steps(path), default=0)
        if done > config.num_steps:
          raise ValueError(
            f'{path}: config.num_steps is {config.num_steps}, but the run '
            f'there is at step {done}'
          )
      values = {
        'format_version': config_lib.FORMAT_VERSION,
        'stage': stage,
        **config.to_dict(),
      }
      files.write_json(path / 'config.json', values)
      yield cls(path, stage, config)

  @classmethod
  def open(cls, path: epath.PathLike) -> 'Workdir':
    """Opens a workdir that a stage made.

    Args:
      path: the directory.

    Returns:
      The workdir.

    Raises:
      ValueError: no config.json, or one of another format.
    """
    path = epath.Path(path)
    file = path / 'config.json'
    if not file.exists():
      raise ValueError(f'{path}: not a workdir (it has no config.json)')
    values = files.read_json(file)
    if not isinstance(values, dict):
      raise ValueError(f'{file}: expected a JSON object')
    version = values.pop('format_version', None)
    if version != config_lib.FORMAT_VERSION:
      raise ValueError(
        f'{file}: format_version {version}, this program reads '
        f'{config_lib.FORMAT_VERSION}'
      )
    stage = values.pop('stage', None)
    if not isinstance(stage, str):
      raise ValueError(f'{file}: stage {stage!r}, expected the name of a verb')
    _bring_up_to_date(values)
    return cls(path, stage, config_lib.from_dict(values))

  def lock(self, role: str) -> contextlib.AbstractContextManager[None]:
    """The lock of `role` ('trainer' or 'refresher'); see files.lock.

    The first process of a run takes it for all.
    """
    if not processes.is_first():
      return contextlib.nullcontext()
    return files.lock(self.path, role)

  @property
  def checkpoints(self) -> epath.Path:
    return self.path / 'checkpoints'

  @property
  def index(self) -> epath.Path:
    return self.path / 'index'

  @property
  def shared_index(self) -> epath.Path | None:
    """The index of another run, whose versions may serve beside the own."""
    other = self.config.index_from or split_init(self.config.init_from)[0]
    return epath.Path(other) / 'index' if other else None

  @property
  def saved(self) -> epath.Path:
    return self.path / 'saved.jsonl'

  @property
  def swaps(self) -> epath.Path:
    return self.path / 'swaps.jsonl'

  @property
  def metrics(self) -> epath.Path:
    return self.path / 'metrics.jsonl'


def _bring_up_to_date(values: dict[str, Any]) -> None:
  """What an earlier program wrote, as this one does; other values stay."""
  model, refresh = values.get('model'), values.get('refresh')
  if isinstance(model, dict) and isinstance(model.get('remat'), bool):
    # Before there were kinds of it.
    model['remat'] = 'full' if model['remat'] else 'none'
  if isinstance(refresh, dict) and refresh.get('write_back_next') == 0:
    del refresh['write_back_next']


def absolute_paths(config: config_lib.Config) -> config_lib.Config:
  """The config with its local paths absolute: a run is asked from anywhere."""
  paths = {
    name: str(files.absolute(value))
    for name in _PATHS
    if (value := getattr(config, name)) and not value.startswith('tfds:')
  }
  if replay := config.refresh.replay:
    replayed = dataclasses.replace(
      config.refresh, replay=str(files.absolute(replay))
    )
    config = dataclasses.replace(config, refresh=replayed)
  return config_lib.replace(config, **paths)


def split_init(init_from: str) -> tuple[str, int | None]:
  """`WORKDIR[:STEP]` to its two halves."""
  path, colon, step = init_from.rpartition(':')
  if colon and step.isdecimal():
    return path, int(step)
  return init_from, None


def _check_same(path: epath.Path, old: Any, new: Any) -> None:
  pairs = [(name, old[name], new[name]) for name in _FIXED]
  pairs += [
    (f'model.{name}', old['model'][name], value)
    for name, value in new['model'].items()
  ]
  for name, was, now in pairs:
    if was != now:
      raise ValueError(
        f'{path}: config.{name} is {now!r}, but the run there has {was!r}; '
        f'use {was!r} or another workdir'
      )
