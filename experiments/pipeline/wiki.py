"""Runs an experiment on real passages: stages, evaluations, a table."""

import argparse
import importlib.util
import json
import pathlib
import random
import subprocess
import sys
import time
from typing import Any, NamedTuple

from pipeline import bm25

from realm_jax.workdir import files

_NUM_DEV = 200  # questions held out of training
_SCORES = ('recall@1', 'recall@5', 'recall@20', 'exact_match', 'f1')

# What differs in a run that only shows that the stages chain.
_SMOKE = {'num_steps': 3, 'checkpoint_every': 1, 'log_every': 1}
_SMOKE_BATCH = 4

BERT = 'bert'  # as the place of an input: the checkpoint of --bert


class Stage(NamedTuple):
  """A training stage of an experiment."""

  verb: str
  inputs: dict[str, str]  # config key to the stage it comes from, or BERT
  row: str = ''  # its name in the table; none: it is not evaluated


class Inputs(NamedTuple):
  """Names of files in --data."""

  corpora: tuple[str, ...]
  train: tuple[str, ...]  # questions
  tests: dict[str, str]  # name in the table to questions
  zero_shot: tuple[str, ...] = ()  # tests whose questions are trained on


def parser(description: str, workdir: str) -> argparse.ArgumentParser:
  """The flags that every such experiment has; `workdir` is the default."""
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument('--data', required=True, help='directory of the inputs')
  help = 'Hugging Face directory, or workdir, to start from'
  parser.add_argument('--bert', default='', help=help)
  parser.add_argument('--workdir', default=workdir)
  help = '3 steps a stage on a few hundred passages: do the stages chain?'
  parser.add_argument('--smoke', action='store_true', help=help)
  return parser


class Pipeline:
  """Runs the stages as processes; what is finished is not run again.

  Args:
    flags: of `parser()`.
    experiment: its file; `get_config(prefix + stage)` is the stage's config.
    stages: in order.
    inputs: what is read.
    block_length: of the corpus, in wordpieces.
    prefix: of the stages' names.
  """

  def __init__(
    self,
    flags: argparse.Namespace,
    experiment: str,
    stages: dict[str, Stage],
    inputs: Inputs,
    block_length: int,
    prefix: str = '',
  ):
    places = [place for s in stages.values() for place in s.inputs.values()]
    if BERT in places and not flags.bert:
      raise SystemExit('error: --bert is needed')
    self.experiment = f'{experiment}:{prefix}'
    self.stages = stages
    self.zero_shot = inputs.zero_shot
    self.block_length = block_length
    self.bert = pathlib.Path(flags.bert)
    self.workdir = pathlib.Path(flags.workdir)
    self.smoke: bool = flags.smoke
    data = pathlib.Path(flags.data)
    self.vocab = str(data / 'vocab.txt')
    self.corpora = [str(data / name) for name in inputs.corpora]
    self.train = [str(data / name) for name in inputs.train]
    self.tests = {name: str(data / file) for name, file in inputs.tests.items()}
    self.workdir.mkdir(parents=True, exist_ok=True)

  def run(self) -> None:
    """All of it, in order."""
    if self.smoke:
      self._cut_inputs()
    self._prepare()
    rows = {'BM25': self._bm25()}
    for name, stage in self.stages.items():
      self._stage(name)
      if stage.row:
        rows[stage.row] = self._evaluate(name)
    self._summary(rows)

  def _stage(self, name: str) -> None:
    """Trains a stage; a refresher runs beside pre-training."""
    workdir = self.workdir / name
    if (workdir / 'finished.json').exists():
      return
    stage = self.stages[name]
    changes: dict[str, Any] = {'corpus': self.workdir / 'corpus'}
    for key, source in stage.inputs.items():
      changes[key] = self.bert if source == BERT else self.workdir / source
    if stage.verb in ('pretrain', 'finetune'):
      changes['dev_questions'] = self.workdir / 'questions/dev.jsonl'
    if stage.verb == 'finetune':
      changes['questions'] = self.workdir / 'questions/train.jsonl'
    if self.smoke:
      changes |= {**_SMOKE, 'batch_size': _SMOKE_BATCH}
    arguments = [
      stage.verb,
      *('--config', f'{self.experiment}{name}'),
      *('--workdir', str(workdir)),
      *(f'--config.{key}={value}' for key, value in changes.items()),
    ]
    with self._timed(name):
      if self._refreshed(name):
        self._beside(arguments, workdir)
      else:
        self._realm(*arguments)

  def _refreshed(self, name: str) -> bool:
    """Whether a process of its own rebuilds the stage's index."""
    from realm_jax import experiment

    config = experiment.load(f'{self.experiment}{name}')
    where = config.refresh.where
    return self.stages[name].verb == 'pretrain' and where == 'separate'

  def _beside(self, arguments: list[str], workdir: pathlib.Path) -> None:
    """Runs a trainer with a refresher beside it."""
    trainer = subprocess.Popen(self._command(*arguments))
    refresher = None
    try:
      # Of step 0 there is an index, that of an earlier stage: the refresher
      # need not make it again.
      while refresher is None and trainer.poll() is None:
        time.sleep(1)
        if any(_steps(workdir)):
          follow = ('refresh', '--workdir', str(workdir), '--follow')
          refresher = subprocess.Popen(self._command(*follow))
      jobs = [trainer] + ([refresher] if refresher else [])
      for job in jobs:
        if job.wait():
          raise SystemExit(f'error: {" ".join(map(str, job.args))}')
    finally:
      for job in (trainer, refresher):
        if job is not None and job.poll() is None:
          job.terminate()
          job.wait()

  def _prepare(self) -> None:
    corpus = self.workdir / 'corpus'
    if not (corpus / 'manifest.json').exists():
      with self._timed('prepare'):
        self._realm(
          'prepare',
          *('--input', *self.corpora),
          *('--vocab', self.vocab),
          *('--output', str(corpus)),
          *('--block-length', str(self.block_length)),
        )
    if not (self.workdir / 'questions').exists():
      with self._timed('questions'):
        self._write_questions(corpus)

  def _write_questions(self, corpus: pathlib.Path) -> None:
    """Training and dev questions: those with an answer in the corpus.

    Most answers of nq_dev are not in it; such a question has a loss of zero.
    """
    import numpy as np

    from realm_jax.corpus.store import Corpus
    from realm_jax.data.labels import NO_ROW, AnswerLabels
    from realm_jax.data.questions import read_questions

    asked = [
      question for name in self.train for question in read_questions(name)
    ]
    labels = AnswerLabels.build(asked, Corpus.open(str(corpus)), 1, 1, 10)
    row_QC, _, _ = labels.take(np.arange(len(asked)))
    answered = [
      question
      for question, row in zip(asked, row_QC[:, 0], strict=True)
      if row != NO_ROW
    ]
    random.Random(0).shuffle(answered)
    print(f'questions: {len(answered)} of {len(asked)} have an answer')
    num_dev = min(_NUM_DEV, len(answered) // 4)
    made = self.workdir / 'questions.partial'
    made.mkdir(exist_ok=True)
    for name, part in (
      ('dev.jsonl', answered[:num_dev]),
      ('train.jsonl', answered[num_dev:]),
    ):
      lines = (
        json.dumps({'question': q.question, 'answers': q.answers}) for q in part
      )
      (made / name).write_text('\n'.join(lines) + '\n')
    made.rename(self.workdir / 'questions')

  def _evaluate(self, name: str) -> dict[str, Any]:
    """metrics.json of a stage, by test set."""
    verb, workdir = self.stages[name].verb, str(self.workdir / name)
    outputs = {
      test: self._output(name, test)
      for test in self.tests
      if verb != 'finetune' or test not in self.zero_shot
    }
    missing = [
      test
      for test, output in outputs.items()
      if not (output / 'metrics.json').exists()
    ]
    if missing and verb != 'finetune':  # its index is that of pre-training
      with self._timed(f'{name}: index'):
        self._realm('refresh', '--workdir', workdir, '--once')
    for test in missing:
      with self._timed(f'{name}: evaluate'):
        self._realm(
          'evaluate',
          *('--workdir', workdir),
          *('--questions', self.tests[test]),
          *('--output', str(outputs[test])),
        )
    return {
      test: files.read_json(output / 'metrics.json')
      for test, output in outputs.items()
    }

  def _bm25(self) -> dict[str, Any] | None:
    """Recall of BM25 over the same blocks, title and text, by test set."""
    output = self.workdir / 'eval/bm25.json'
    if output.exists():
      return files.read_json(output)
    if not all(map(importlib.util.find_spec, ('bm25s', 'Stemmer'))):
      print('bm25s or PyStemmer is not installed: the table has no BM25')
      return None
    with self._timed('BM25'):
      metrics = bm25.recall(self.workdir / 'corpus', self.tests)
    output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(output, metrics)
    return metrics

  def _summary(self, rows: dict[str, dict[str, Any] | None]) -> None:
    """Writes summary.json and learning.png, and prints the tables."""
    from realm_jax.evaluate import curves

    tables = {
      test: {
        name: {
          score: (metrics[test].get(score) or {}).get('value')
          for score in _SCORES
        }
        for name, metrics in rows.items()
        if metrics and test in metrics
      }
      for test in self.tests
    }
    gains = self._gains()
    swaps = files.read_lines(self.workdir / 'pretrain/swaps.jsonl')
    utility = [
      line['retrieval_utility']
      for line in files.read_lines(self.workdir / 'pretrain/metrics.jsonl')
      if 'retrieval_utility' in line
    ]
    curves.plot(self.workdir / 'pretrain', self.workdir / 'learning.png')
    seconds = self._seconds()
    summary = {
      'tables': tables,
      'recall@5 after pre-training less': gains,
      'index_versions_used': len({(s['index'], s['version']) for s in swaps}),
      'retrieval_utility_first': utility[0],
      'retrieval_utility_last': utility[-1],
      'seconds': {**seconds, 'total': sum(seconds.values())},
    }
    files.write_json(self.workdir / 'summary.json', summary)
    for test, table in tables.items():
      print(f'\n{test:20}' + ''.join(f'{score:>12}' for score in _SCORES))
      for name, row in table.items():
        cells = (
          f'{"" if value is None else format(value, ".1f"):>12}'
          for value in row.values()
        )
        print(f'{name:20}' + ''.join(cells))
    print()
    for name, by_test in gains.items():
      cells = (
        f'{test} {gain["value"]:+.1f} '
        f'({gain["low"]:+.1f} to {gain["high"]:+.1f})'
        for test, gain in by_test.items()
      )
      print(f'recall@5 after pre-training less {name}: ' + ', '.join(cells))
    for name in (
      'index_versions_used',
      'retrieval_utility_first',
      'retrieval_utility_last',
    ):
      print(f'{name}: {summary[name]:.3g}')
    print('seconds: ' + ', '.join(f'{k} {v:.0f}' for k, v in seconds.items()))

  def _gains(self) -> dict[str, dict[str, dict[str, float]]]:
    """What pre-training adds to recall@5, with 95% intervals, by row and test.

    Question by question: such differences are smaller than what separates two
    samples of questions.
    """
    from realm_jax.scores import qa

    before = {
      name: stage.row
      for name, stage in self.stages.items()
      if stage.verb == 'ict' and stage.row
    }
    gains: dict[str, dict[str, Any]] = {row: {} for row in before.values()}
    for test in self.tests:
      found = self._found(test, 'pretrain', *before)
      for name, row in before.items():
        gains[row][test] = qa.bootstrap(found['pretrain'] - found[name])
    return gains

  def _found(self, test: str, *names: str) -> dict[str, Any]:
    """Which questions had an answer in the first 5 passages: float [Q]s."""
    from realm_jax.corpus.store import Corpus
    from realm_jax.data.questions import read_questions
    from realm_jax.train import answer, dev

    asked = read_questions(self.tests[test])
    corpus = Corpus.open(str(self.workdir / 'corpus'))

    def hits(name: str) -> Any:
      evidence = [
        answer.Evidence([z['block'] for z in line['evidence']], [])
        for line in files.read_lines(
          self._output(name, test) / 'predictions.jsonl'
        )
      ]
      return dev.hits(asked, evidence, corpus, 5).any(1).astype(float)

    return {name: hits(name) for name in names}

  def _output(self, name: str, test: str) -> pathlib.Path:
    return self.workdir / 'eval' / name / test.replace(' ', '_')

  def _cut_inputs(self) -> None:
    """The first lines of each input, for --smoke."""
    from realm_jax.corpus.sources import read_json_lines

    directory = self.workdir / 'inputs'
    directory.mkdir(exist_ok=True)

    def cut(path: str, count: int) -> str:
      short = directory / pathlib.Path(path).name.replace('.zst', '.gz')
      short = short.with_suffix('')  # not compressed
      with short.open('w') as file:
        for _, (_, record) in zip(
          range(count), read_json_lines(path), strict=False
        ):
          file.write(json.dumps(record) + '\n')
      return str(short)

    self.corpora = [cut(path, 100) for path in self.corpora]
    self.train = [cut(path, 60) for path in self.train]
    self.tests = {name: cut(path, 40) for name, path in self.tests.items()}

  def _command(self, *arguments: str) -> list[str]:
    print('realm ' + ' '.join(arguments), flush=True)
    return [sys.executable, '-m', 'realm_jax', *arguments]

  def _realm(self, *arguments: str) -> None:
    status = subprocess.run(
      self._command(*arguments), stdout=subprocess.DEVNULL
    ).returncode
    if status:
      raise SystemExit(f'error: realm {arguments[0]} ended with {status}')

  def _seconds(self) -> dict[str, float]:
    file = self.workdir / 'seconds.json'
    return files.read_json(file) if file.exists() else {}

  def _timed(self, name: str) -> '_Timed':
    return _Timed(self, name)


class _Timed:
  """Adds the time of a block to seconds.json, also when it is cut short."""

  def __init__(self, pipeline: Pipeline, name: str):
    self._pipeline, self._name = pipeline, name

  def __enter__(self) -> None:
    self._began = time.monotonic()

  def __exit__(self, *_: object) -> None:
    took = time.monotonic() - self._began
    seconds = self._pipeline._seconds()
    seconds[self._name] = seconds.get(self._name, 0) + took
    files.write_json(self._pipeline.workdir / 'seconds.json', seconds)
    print(f'{self._name}: {took:.0f} s', flush=True)


def _steps(workdir: pathlib.Path) -> list[int]:
  """Steps of the checkpoints that are complete."""
  from realm_jax.workdir import checkpoints

  return checkpoints.steps(workdir)
