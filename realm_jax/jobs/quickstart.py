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
from realm_jax.corpus.store import Corpus
from realm_jax.evaluate import curves
from realm_jax.evaluate.evaluate import evaluate
from realm_jax.index.refresh import refresh
from realm_jax.jobs import quickstart_report
from realm_jax.jobs.progress import Progress
from realm_jax.parallel import processes
from realm_jax.train.run import train
from realm_jax.train.terminated import Stopped, stopped_at_once
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


def quickstart(workdir: str, seed: int, size: str) -> int:
  """Runs every stage and leaves `summary.json` and `learning.png`.

  `progress.json` has what each part came to: run again, it goes on after the
  last of them, in the middle of a stage from its newest checkpoint.

  Args:
    workdir: directory for the world, the stores and the workdirs of stages.
    seed: of world and training.
    size: 'full', or 'small' for a test.

  Returns:
    Exit status: 0 done, 75 stopped by SIGTERM.

  Raises:
    ValueError: the workdir holds something else.
    RuntimeError: the refresher failed.
  """
  run = _Quickstart(workdir, seed, size)
  try:
    with stopped_at_once():
      summary = _run(run)
  except Stopped:
    run.say('stopped by SIGTERM; goes on when it is run again')
    return processes.SIGTERM_STATUS
  curves.plot(run.path('pretrain'), run.path('learning.png'))
  files.write_json(run.path('summary.json'), summary)
  quickstart_report.table(summary, run.path('learning.png'))
  return 0


def _run(run: '_Quickstart') -> dict[str, Any]:
  """All stages in order; gives what summary.json holds, scores in percent."""
  run.say('1/7  writing an invented world: an encyclopedia and news about it')
  world = run.once('world', run.write_world)
  run.once('corpora', lambda: run.prepare(world))
  run.say('2/7  ICT: find the passage that a sentence was taken from')
  run.stage('ict', run.ict())
  before = run.once('before', lambda: run.zero_shot('ict', world))
  run.say('3/7  MLM: fill in masked words of the encyclopedia')
  run.stage('mlm', run.mlm())
  run.stage('copying', run.copying(), 'mlm')
  run.say('4/7  pre-training: fill in masked facts of the news by reading; a')
  run.say('     second process rebuilds the index beside it')
  used = run.once('versions', lambda: run.pretrain(world))
  after = run.score('pretrain', world['questions_test'], 'test')
  run.say('5/7  fine-tuning on questions')
  run.stage('finetune', run.finetune(world, 'pretrain', closed_book=False))
  answered = run.score('finetune', world['questions_test'], 'test')
  run.say('6/7  the same model and training without retrieval')
  run.stage('closed_pretrain', run.closed_pretrain(), 'pretrain')
  run.stage(
    'closed_book',
    run.finetune(world, 'closed_pretrain', closed_book=True),
    'finetune',
  )
  closed = run.score('closed_book', world['questions_test'], 'test')
  run.say('7/7  new documents: into the index, without training')
  run.once('new documents', lambda: run.add(world))
  new = run.score('finetune', world['new_questions'], 'new')
  return {
    'closed_book_exact_match': closed['exact_match']['value'],
    'exact_match': answered['exact_match']['value'],
    'zero_shot_recall@1_before_pretraining': before['recall@1']['value'],
    'zero_shot_recall@1_after_pretraining': after['recall@1']['value'],
    'new_document_exact_match': new['exact_match']['value'],
    'index_versions_used': used,
    'seconds': run.seconds(),
  }


class _Quickstart:
  """The stages of one run; each stage has a workdir of its own name."""

  def __init__(self, directory: str, seed: int, size: str):
    self._directory = directory
    self._seed, self._size = seed, size
    self._steps = _STEPS[size]
    self._progress = Progress(directory, {'seed': seed, 'size': size})
    self.once = self._progress.once
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

  def seconds(self) -> float:
    return self._progress.seconds()

  def say(self, what: str) -> None:
    print(what, file=sys.stderr, flush=True)

  def write_world(self) -> dict[str, Any]:
    return toy.write_world(self.path('world'), self._seed, self._size)['files']

  def prepare(self, world: dict[str, Any]) -> None:
    text = [str(world['encyclopedia']), str(world['news'])]
    for name, inputs in (
      ('encyclopedia', text[:1]),
      ('news', text[1:]),
      ('text', text),  # all the raw text there is, for the warm starts
    ):
      if os.path.exists(os.path.join(self.path(name), 'manifest.json')):
        continue  # made by a run that was stopped then
      learned = os.path.join(self.path('encyclopedia'), 'vocab.txt')
      first = name == 'encyclopedia'
      prepare(
        inputs,
        self.path(name),
        vocab=None if first else learned,
        train_vocab=_MODEL['vocab_size'] if first else None,
        block_length=_BLOCK_LENGTH,
      )

  def add(self, world: dict[str, Any]) -> None:
    """New documents into the corpus, and into the index of fine-tuning."""
    corpus = self.path('encyclopedia')
    if Corpus.open(corpus).parent is None:
      change.add(corpus, [str(world['new_documents'])], 'jsonl')
    refresh(self.path('finetune'), follow=False)

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
      refresher.wait()
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
    def run() -> int:
      if train(verb or name, config, self.path(name)):
        raise Stopped
      return config.num_steps

    began = time.monotonic()
    steps = self.once(name, run)
    self.say(f'     {steps} steps, {time.monotonic() - began:.0f} s')

  def zero_shot(self, name: str, world: dict[str, Any]) -> dict[str, Any]:
    refresh(self.path(name), follow=False)
    return self.score(name, world['questions_test'], 'test')

  def score(self, name: str, asked: Any, what: str) -> dict[str, Any]:
    output = os.path.join(self.path(name), 'eval', what)
    metrics = self.once(
      f'{name}: {what}', lambda: evaluate(self.path(name), str(asked), output)
    )
    shown = {
      key: round(value['value'], 1)
      for key, value in metrics.items()
      if isinstance(value, dict)
    }
    self.say(f'     {what} questions: {json.dumps(shown)}')
    return metrics
