"""The configuration of a run: frozen dataclasses, validated at start.

Experiment files (`experiment.py`) give the keys they change; every other key
has the default below. The resolved configuration is written to `config.json` of
the workdir. The keys are one of the project's fixed formats.
"""

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from realm_jax.index_config import IndexConfig
from realm_jax.refresh_config import RefreshConfig

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes of the transformers (defaults: BERT-base uncased)."""

  vocab_size: int = 30522
  hidden_size: int = 768
  num_layers: int = 12
  num_heads: int = 12
  mlp_size: int = 3072
  max_positions: int = 512
  activation: Literal['gelu_tanh', 'gelu'] = 'gelu_tanh'
  layer_norm_eps: float = 1e-12
  initializer_range: float = 0.02
  dropout: float = 0.1  # on hidden states; attention weights have none
  # Retriever (paper section 3.2).
  retrieval_size: int = 128  # of an embedding in the index
  projection_eps: float = 1e-12
  share_embedders: bool = True
  # Reader (release, ORQA).
  span_hidden_size: int = 256
  max_span_width: int = 10  # wordpieces
  reader_eps: float = 1e-3
  # Computation.
  compute_dtype: Literal['float32', 'bfloat16'] = 'float32'
  # What of a layer the backward pass recomputes: nothing; all but products
  # with its kernels; all.
  remat: Literal['none', 'dots', 'full'] = 'none'
  attention: Literal['xla', 'cudnn'] = 'xla'  # cudnn: flash, bfloat16, GPU

  def validate(self) -> None:
    for name in (
      'vocab_size',
      'hidden_size',
      'num_layers',
      'num_heads',
      'mlp_size',
      'max_positions',
      'retrieval_size',
      'span_hidden_size',
      'max_span_width',
    ):
      _at_least('model', name, getattr(self, name), 1)
    if self.hidden_size % self.num_heads:
      raise ValueError(
        f'model.num_heads: {self.num_heads} does not divide '
        f'model.hidden_size {self.hidden_size}'
      )
    if self.attention == 'cudnn' and self.compute_dtype != 'bfloat16':
      raise ValueError(
        f'model.attention: cudnn needs model.compute_dtype bfloat16, not '
        f'{self.compute_dtype}'
      )
    if self.attention == 'cudnn' and self.hidden_size // self.num_heads % 8:
      raise ValueError(
        f'model.attention: cudnn needs heads of a multiple of 8, not '
        f'{self.hidden_size // self.num_heads} (model.hidden_size / num_heads)'
      )
    if not 0 <= self.dropout < 1:
      raise ValueError(
        f'model.dropout: {self.dropout}, must be at least 0 and below 1'
      )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with linear warm-up and linear decay to 0, as BERT has it."""

  learning_rate: float = 3e-5
  retriever_learning_rate_scale: float = 1.0
  warmup_steps: int = 0  # of the linear rise
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-6
  weight_decay: float = 0.01
  clip_norm: float = 1.0  # of the global norm of the gradient
  bias_correction: bool = False  # the release had none

  def validate(self) -> None:
    for name in (
      *('learning_rate', 'retriever_learning_rate_scale'),
      'weight_decay',
    ):
      if getattr(self, name) < 0:
        raise ValueError(
          f'optimizer.{name}: {getattr(self, name)}, must not be negative'
        )
    _at_least('optimizer', 'warmup_steps', self.warmup_steps, 0)
    for name in ('b1', 'b2'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f'optimizer.{name}: {getattr(self, name)}, must be in [0, 1)'
        )
    for name in ('eps', 'clip_norm'):
      if getattr(self, name) <= 0:
        raise ValueError(
          f'optimizer.{name}: {getattr(self, name)}, must be positive'
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Device mesh: batch and FSDP over `data`, tensors over `model`."""

  data: int = -1  # -1: all the devices that `model` leaves
  model: int = 1

  def validate(self) -> None:
    _at_least('mesh', 'model', self.model, 1)
    if self.data != -1:
      _at_least('mesh', 'data', self.data, 1)


@dataclasses.dataclass(frozen=True)
class Config:
  """One training stage. Lengths are in wordpieces."""

  # What is read.
  corpus: str = ''  # Z, a store that `realm prepare` made
  text_corpus: str = ''  # X, the text that is trained on; default Z
  questions: str = ''  # JSON lines or tfds:NAME, to train on
  dev_questions: str = ''  # to score while training
  init_from: str = ''  # WORKDIR[:STEP] or a Hugging Face directory
  index_from: str = ''  # WORKDIR; default: init_from's

  # The run.
  seed: int = 0
  num_steps: int = 1000
  batch_size: int = 32  # global
  micro_batches: int = 1  # parts of a batch, one after the other
  log_every: int = 50  # steps, as are those below
  sample_every: int = 500  # steps between sampled retrievals; 0: none
  checkpoint_every: int = 500
  keep_checkpoints: int = 3

  # Shapes.
  query_length: int = 96  # a sentence or question at most
  reader_length: int = 320  # question and body, fine-tuning
  max_masks: int = 10  # masked wordpieces of a sentence at most
  num_candidates: int = 8  # passages read, the null document included

  # Objectives.
  pooling: Literal['cls', 'mean'] = 'cls'
  score_temperature: float = 1.0  # f(x, z) is divided by it
  # Pre-training: added to the null document's score, nats. A retriever that
  # never saw the empty text scores it far below all others; what lifts it by
  # those nats drags all other embeddings along.
  null_bias: float = 0.0
  masking: Literal['salient', 'uniform', 'random_span'] = 'salient'
  mask_rate: float = 0.15  # of uniform masking
  # Excludes a sentence's own block. Without it a reader soon learns to copy.
  ban_trivial: bool = True
  # What p(y|z,x) is summed over z for: a sentence's masks together, or each.
  marginal: Literal['sequence', 'token'] = 'sequence'
  sentence_removal: float = 0.9  # ICT: how often the block loses the sentence
  # MLM: how often the text beside a sentence holds it too, to be copied from.
  copy_rate: float = 0.0
  freeze_retriever_steps: int = 0  # the embedders learn from then on
  retriever_beam: int = 5000  # passages that the retriever learns from
  reader_beam: int = 5  # passages that are read, fine-tuning
  # Blocks with an answer, a question; rows behind the last of a full list are
  # left out of the loss.
  max_gold_rows: int = 256
  max_gold_spans: int = 4  # occurrences of the answers, a block
  # Fine-tuning too trains the document embedder (the paper freezes it): blocks
  # that are read are scored afresh, and the index is refreshed.
  train_document_embedder: bool = False
  closed_book: bool = False  # fine-tune the encoder alone: no retrieval
  max_answer_length: int = 8  # of a closed-book answer
  eval_every: int = 0  # steps between dev evaluations; 0: each epoch

  model: ModelConfig = ModelConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  mesh: MeshConfig = MeshConfig()
  index: IndexConfig = dataclasses.field(default_factory=IndexConfig)
  refresh: RefreshConfig = dataclasses.field(default_factory=RefreshConfig)

  def validate(self) -> None:
    """Raises ValueError that names the first field that cannot be right."""
    for name in (
      'num_steps',
      'batch_size',
      'micro_batches',
      'log_every',
      'checkpoint_every',
      'keep_checkpoints',
      'reader_length',
      'max_masks',
      'num_candidates',
      'retriever_beam',
      'reader_beam',
      'max_gold_rows',
      'max_gold_spans',
      'max_answer_length',
    ):
      _at_least('', name, getattr(self, name), 1)
    # [CLS], a wordpiece, [SEP].
    _at_least('', 'query_length', self.query_length, 3)
    for name in (
      'seed',
      'sample_every',
      'freeze_retriever_steps',
      'eval_every',
    ):
      _at_least('', name, getattr(self, name), 0)
    if self.train_document_embedder and self.closed_book:
      raise ValueError(
        'train_document_embedder: not with closed_book, which has no documents'
      )
    if self.score_temperature <= 0:
      raise ValueError(
        f'score_temperature: {self.score_temperature}, must be positive'
      )
    for name in ('sentence_removal', 'copy_rate', 'mask_rate'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name}: {getattr(self, name)}, must be in [0, 1]')
    if self.reader_beam > self.retriever_beam:
      raise ValueError(
        f'reader_beam: {self.reader_beam} is more than retriever_beam '
        f'{self.retriever_beam}'
      )
    if self.refresh.changes_rows() and self.index.kind != 'exact':
      raise ValueError(
        f'index.kind: {self.index.kind} is built over rows that stay; '
        'refresh.write_back, refresh.priority_rows and refresh.where rolling '
        'need exact'
      )
    for section in (
      self.model,
      self.optimizer,
      self.mesh,
      self.index,
      self.refresh,
    ):
      section.validate()
    on_hosts = self.index.kind == 'scann_host'
    if on_hosts and self.refresh.policy == 'adaptive':
      raise ValueError(
        'refresh.policy: adaptive looks into rows on the devices; index.kind '
        'scann_host has none'
      )

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def _at_least(section: str, name: str, value: int, least: int) -> None:
  if value < least:
    field = f'{section}.{name}' if section else name
    raise ValueError(f'{field}: {value}, must be at least {least}')


def from_dict(values: dict[str, Any]) -> Config:
  """Builds a validated Config.

  Args:
    values: nested mapping of config keys; absent keys take their defaults.

  Returns:
    The validated configuration.

  Raises:
    ValueError: a key that does not exist, a value of another type, or a value
      that cannot be right; the message names the key.
  """
  config = _build(Config, values, '')
  config.validate()
  return config


def replace(config: Config, **changes: Any) -> Config:
  """A validated copy; sections take dicts of the keys they change."""
  merged = config.to_dict()
  for name, value in changes.items():
    if isinstance(value, dict):
      merged[name].update(value)
    else:
      merged[name] = value
  return from_dict(merged)


def _build(cls: type, values: Any, prefix: str) -> Any:
  if not isinstance(values, dict):
    raise ValueError(f'config.{prefix.rstrip(".")}: expected a section')
  hints = typing.get_type_hints(cls)
  arguments = {}
  for name, value in values.items():
    if name not in hints:
      raise unknown_key(f'config.{prefix}{name}', str(name), hints)
    kind = hints[name]
    if dataclasses.is_dataclass(kind):
      arguments[name] = _build(typing.cast(type, kind), value, f'{name}.')
    else:
      arguments[name] = _check(kind, value, f'config.{prefix}{name}')
  return cls(**arguments)


def _check(kind: Any, value: Any, where: str) -> Any:
  if get_origin(kind) is Literal:
    if value not in get_args(kind):
      choices = ', '.join(map(str, get_args(kind)))
      raise ValueError(f'{where}: {value!r}, choose from {choices}')
    return value
  if kind is float and type(value) is int:
    return float(value)
  if kind is str and isinstance(value, os.PathLike):
    return os.fspath(value)
  if type(value) is not kind:
    raise ValueError(f'{where}: {value!r}, expected {type_name(kind)}')
  if kind is float and not math.isfinite(value):
    raise ValueError(f'{where}: {value!r}, must be finite')
  return value


def unknown_key(where: str, name: str, known: Iterable[str]) -> ValueError:
  """The error for a key that does not exist; offers the nearest one."""
  near = difflib.get_close_matches(name, known, 1)
  hint = f'did you mean {near[0]}?' if near else f'has {", ".join(known)}'
  return ValueError(f'{where}: no such key; {hint}')


def type_name(kind: Any) -> str:
  """A field's type in words, for messages."""
  names = {int: 'an integer', float: 'a number', bool: 'true or false'}
  return (
    names.get(kind, 'text')
    if not isinstance(kind, types.UnionType)
    else str(kind)
  )
