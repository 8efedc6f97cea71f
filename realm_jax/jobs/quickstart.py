"""The whole pipeline on the toy world, from nothing, on a laptop's CPU."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import Any

from realm_jax import config as config_lib
from realm_jax.config import Config
from realm_jax.corpus import change, toy
from realm_jax.corpus.prepare import prepare
from realm_jax.evaluate import curves
from realm_jax.evaluate.evaluate import evaluate
from realm_jax.index.refresh import refresh
from realm_jax.jobs import quickstart_report
from realm_jax.train.run import train
from realm_jax.workdir import files

_BLOCK_LENGTH = 64
_MODEL = {
  'vocab_size': 2048,
  'hidden_size': 64,
  'num_layers': 2,
  'num_heads': 2,
  'mlp_size': 128,
  'max_positions': 96,
  'retrieval_size': 64,
  'span_hidden_size': 64,
  'max_span_width': 4,
  'dropout': 0.0,
}


@dataclasses.dataclass(frozen=True)
class _Steps:
  """Steps of each stage."""

  ict: int
  mlm: int
  copying: int
  pretrain: int
  frozen: int  # of pre-training, before the retriever learns too
  refresh_every: int
  finetune: int


_STEPS = {
  'full': _Steps(200, 1200, 300, 750, 100, 25, 300),
  'small': _Steps(80, 500, 150, 140, 40, 28, 80),
}


def quickstart(workdir: str, seed: int, size: str) -> dict[str, Any]:
  """Runs every stage and leaves `summary.json` and `learning.png`.

  Args:
    workdir: directory for the world, the stores and the workdirs of stages.
    seed: of world and training.
    size: 'full', or 'small' for a test.

  Returns:
    What summary.json holds; scores in percent.

  Raises:
    ValueError: the workdir holds a run already.
    RuntimeError: a stage was stopped, or the refresher failed.
  """
  if os.path.exists(os.path.join(workdir, 'world')):
    raise ValueError(f'--workdir {workdir}: holds a run already; give another')
  began = time.monotonic()
  os.makedirs(workdir, exist_ok=True)
  run = _Quickstart(workdir, seed, _STEPS[size])
  _say('1/7  writing an invented world: an encyclopedia and news about it')
  world = toy.write_world(run.path('world'), seed, size)['files']
  run.prepare(world)
  _say('2/7  ICT: find the passage that a sentence was taken from')
  run.stage('ict', run.ict())
  before = run.zero_shot('ict', world)
  _say('3/7  MLM: fill in masked words of the encyclopedia')
  run.stage('mlm', run.mlm())
  run.stage('copying', run.copying(), 'mlm')
  _say('4/7  pre-training: fill in masked facts of the news by reading; a')
  _say('     second process rebuilds the index beside it')
  used = run.pretrain(world)
  after = run.score('pretrain', world['questions_test'], 'test')
  _say('5/7  fine-tuning on questions')
  run.stage('finetune', run.finetune(world, 'pretrain', closed_book=False))
  answered = run.score('finetune', world['questions_test'], 'test')
  _say('6/7  the same model and training without retrieval')
  run.stage('closed_pretrain', run.closed_pretrain(), 'pretrain')
  run.stage(
    'closed_book',
    run.finetune(world, 'closed_pretrain', closed_book=True),
    'finetune',
  )
  closed = run.score('closed_book', world['questions_test'], 'test')
  _say('7/7  new documents: into the index, without training')
  change.add(run.path('encyclopedia'), [str(world['new_documents'])], 'jsonl')
  refresh(run.path('finetune'), follow=False)
  new = run.score('finetune', world['new_questions'], 'new')
  summary = {
    'closed_book_exact_match': closed['exact_match']['value'],
    'exact_match': answered['exact_match']['value'],
    'zero_shot_recall@1_before_pretraining': before['recall@1']['value'],
    'zero_shot_recall@1_after_pretraining': after['recall@1']['value'],
    'new_document_exact_match': new['exact_match']['value'],
    'index_versions_used': used,
    'seconds': round(time.monotonic() - began, 1),
  }
  curves.plot(run.path('pretrain'), run.path('learning.png'))
  files.write_json(run.path('summary.json'), summary)
  quickstart_report.table(summary, run.path('learning.png'))
  return summary


class _Quickstart:
  """The stages of one run; each stage has a workdir of its own name."""

  def __init__(self, directory: str, seed: int, steps: _Steps):
    self._directory = directory
    self._steps = steps
    self._base = config_lib.from_dict(
      {
        'seed': seed,
        'corpus': self.path('encyclopedia'),
        'query_length': 24,
        'reader_length': 88,
        'pooling': 'mean',
        'log_every': 20,
        'checkpoint_every': 10**6,
        'model': _MODEL,
        'index': {'rows_dtype': 'float32'},
        'optimizer': {'bias_correction': True, 'warmup_steps': 40},
      }
    )

  def path(self, name: str) -> str:
    return os.path.join(self._directory, name)

  def prepare(self, world: dict[str, Any]) -> None:
    prepare(
      [str(world['encyclopedia'])],
      self.path('encyclopedia'),
      train_vocab=_MODEL['vocab_size'],
      block_length=_BLOCK_LENGTH,
    )
    prepare(
      [str(world['news'])],
      self.path('news'),
      vocab=os.path.join(self.path('encyclopedia'), 'vocab.txt'),
      block_length=_BLOCK_LENGTH,
    )
    # All the raw text there is, for the warm starts.
    prepare(
      [str(world['encyclopedia']), str(world['news'])],
      self.path('text'),
      vocab=os.path.join(self.path('encyclopedia'), 'vocab.txt'),
      block_length=_BLOCK_LENGTH,
    )

  def ict(self) -> Config:
    return config_lib.replace(
      self._base,
      text_corpus=self.path('text'),
      num_steps=self._steps.ict,
      batch_size=192,
      score_temperature=4.0,
      optimizer={'learning_rate': 3e-3},
    )

  def mlm(self) -> Config:
    # From scratch, uniform masks teach copying soonest: each text has several
    # masked words that stand elsewhere in it.
    return config_lib.replace(
      self._base,
      text_corpus=self.path('text'),
      init_from=self.path('ict'),
      num_steps=self._steps.mlm,
      batch_size=64,
      masking='uniform',
      mask_rate=0.2,
      max_masks=12,
      optimizer={'learning_rate': 3e-3},
    )

  def copying(self) -> Config:
    # Whole facts masked, in text that says them twice: the reader learns to
    # find what is missing. One that cannot would teach the retriever nonsense.
    return config_lib.replace(
      self._base,
      init_from=self.path('mlm'),
      num_steps=self._steps.copying,
      batch_size=128,
      max_masks=4,
      optimizer={'learning_rate': 2e-3},
    )

  def pretrain_config(self, world: dict[str, Any]) -> Config:
    return config_lib.replace(
      self._base,
      text_corpus=self.path('news'),
      dev_questions=str(world['questions_dev']),
      init_from=self.path('copying'),
      num_steps=self._steps.pretrain,
      batch_size=64,
      num_candidates=4,
      max_masks=4,
      score_temperature=4.0,
      checkpoint_every=self._steps.refresh_every,
      eval_every=self._steps.refresh_every,
      freeze_retriever_steps=self._steps.frozen,
      optimizer={
        'learning_rate': 1.5e-3,
        'retriever_learning_rate_scale': 0.5,
        'warmup_steps': self._steps.frozen,
      },
    )

  def pretrain(self, world: dict[str, Any]) -> int:
    """Trains with the refresher beside it; gives the versions used."""
    workdir = self.path('pretrain')
    command = [sys.executable, '-m', 'realm_jax', 'refresh']
    refresher = subprocess.Popen([*command, '--workdir', workdir, '--follow'])
    try:
      self.stage('pretrain', self.pretrain_config(world))
      if refresher.wait():
        raise RuntimeError(f'the refresher ended with {refresher.returncode}')
    finally:
      refresher.terminate()
    swaps = files.read_lines(os.path.join(workdir, 'swaps.jsonl'))
    return len({swap['version'] for swap in swaps})

  def closed_pretrain(self) -> Config:
    """The same text, steps and masks with the null document alone."""
    return config_lib.replace(
      self._base,
      text_corpus=self.path('news'),
      init_from=self.path('copying'),
      num_steps=self._steps.pretrain,
      batch_size=64,
      num_candidates=1,
      max_masks=4,
      optimizer={'learning_rate': 1.5e-3, 'warmup_steps': self._steps.frozen},
    )

  def finetune(
    self, world: dict[str, Any], start: str, closed_book: bool
  ) -> Config:
    return config_lib.replace(
      self._base,
      questions=str(world['questions_train']),
      dev_questions=str(world['questions_dev']),
      init_from=self.path(start),
      closed_book=closed_book,
      num_steps=self._steps.finetune,
      batch_size=32,
      retriever_beam=50,
      reader_beam=3,
      max_answer_length=4,
      score_temperature=4.0,
      eval_every=max(self._steps.finetune // 4, 1),
      optimizer={'learning_rate': 1e-3},
    )

  def stage(self, name: str, config: Config, verb: str = '') -> None:
    began = time.monotonic()
    status = train(verb or name, config, self.path(name))
    if status:
      raise RuntimeError(f'{name} was stopped (status {status})')
    _say(f'     {config.num_steps} steps, {time.monotonic() - began:.0f} s')

  def zero_shot(self, name: str, world: dict[str, Any]) -> dict[str, Any]:
    refresh(self.path(name), follow=False)
    return self.score(name, world['questions_test'], 'test')

  def score(self, name: str, asked: Any, what: str) -> dict[str, Any]:
    output = os.path.join(self.path(name), 'eval', what)
    metrics = evaluate(self.path(name), str(asked), output)
    shown = {
      key: round(value['value'], 1)
      for key, value in metrics.items()
      if isinstance(value, dict)
    }
    _say(f'     {what} questions: {json.dumps(shown)}')
    return metrics


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
