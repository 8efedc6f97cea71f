"""Runs the stages of wiki_small.py, each as a process of its own."""

import argparse
import importlib.util
import json
import logging
import pathlib
import random
import subprocess
import sys
import time
from typing import Any

_CORPORA = (
  'corpus_squad.jsonl.gz',
  'corpus_nq_gold.jsonl.gz',
  'corpus_dpr_nq.jsonl.zst',
)
_TRAIN = ('qa_nq_dev.jsonl.gz', 'qa_squad_train.jsonl.gz')
_TEST = 'qa_nq_test.jsonl.gz'
_NUM_DEV = 200  # questions held out of training

# What differs in a run that only shows that the stages chain.
_SMOKE = {'num_steps': 3, 'checkpoint_every': 1, 'log_every': 1}
_SMOKE_BATCH = 4


class Pipeline:
  """Runs the stages as processes; what is finished is not run again."""

  def __init__(
    self,
    flags: argparse.Namespace,
    experiment: str,
    verbs: dict[str, str],
    block_length: int,
  ):
    self.experiment = experiment
    self.verbs = verbs
    self.block_length = block_length
    self.data = pathlib.Path(flags.data)
    self.bert = pathlib.Path(flags.bert)
    self.workdir = pathlib.Path(flags.workdir)
    self.smoke: bool = flags.smoke
    self.corpora = [str(self.data / name) for name in _CORPORA]
    self.train = [str(self.data / name) for name in _TRAIN]
    self.test = str(self.data / _TEST)
    self.workdir.mkdir(parents=True, exist_ok=True)

  def run(self) -> None:
    """All of it, in order."""
    if self.smoke:
      self._cut_inputs()
    self._prepare()
    rows = {'BM25': self._bm25()}
    self._stage('off_the_shelf', init_from=self.bert)
    rows['off the shelf'] = self._evaluate('off_the_shelf')
    self._stage('ict', init_from=self.bert)
    rows['after ICT'] = self._evaluate('ict')
    self._stage('mlm', init_from=self.workdir / 'ict')
    self._stage(
      'pretrain',
      init_from=self.workdir / 'mlm',
      index_from=self.workdir / 'ict',
      dev_questions=self.workdir / 'questions/dev.jsonl',
    )
    rows['after pre-training'] = self._evaluate('pretrain')
    asked = {
      'questions': self.workdir / 'questions/train.jsonl',
      'dev_questions': self.workdir / 'questions/dev.jsonl',
    }
    self._stage('finetune', init_from=self.workdir / 'pretrain', **asked)
    rows['fine-tuned'] = self._evaluate('finetune')
    self._stage('closed_book', init_from=self.workdir / 'mlm', **asked)
    rows['closed book'] = self._evaluate('closed_book')
    self._summary(rows)

  def _stage(self, stage: str, **keys: pathlib.Path) -> None:
    """Trains a stage; a refresher runs beside pre-training."""
    workdir = self.workdir / stage
    if (workdir / 'finished.json').exists():
      return
    changes: dict[str, Any] = {'corpus': self.workdir / 'corpus', **keys}
    if self.smoke:
      changes |= {**_SMOKE, 'batch_size': _SMOKE_BATCH}
    arguments = [
      self.verbs[stage],
      *('--config', f'{self.experiment}:{stage}'),
      *('--workdir', str(workdir)),
      *(f'--config.{key}={value}' for key, value in changes.items()),
    ]
    with self._timed(stage):
      if stage == 'pretrain':
        self._pretrain(arguments, workdir)
      else:
        self._realm(*arguments)

  def _pretrain(self, arguments: list[str], workdir: pathlib.Path) -> None:
    trainer = subprocess.Popen(self._command(*arguments))
    refresher = None
    try:
      # Of step 0 there is an index, that of ICT: the refresher need not make
      # it again, which takes as long as 50 steps.
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
          *('--vocab', str(self.bert / 'vocab.txt')),
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

  def _evaluate(self, stage: str) -> dict[str, Any]:
    """metrics.json of a stage on the NQ test questions."""
    output = self.workdir / 'eval' / stage
    if not (output / 'metrics.json').exists():
      workdir = str(self.workdir / stage)
      if self.verbs[stage] != 'finetune':  # its index is that of pre-training
        with self._timed(f'{stage}: index'):
          self._realm('refresh', '--workdir', workdir, '--once')
      with self._timed(f'{stage}: evaluate'):
        self._realm(
          'evaluate',
          *('--workdir', workdir),
          *('--questions', self.test),
          *('--output', str(output)),
        )
    return json.loads((output / 'metrics.json').read_text())

  def _bm25(self) -> dict[str, Any] | None:
    """Recall of BM25 over the same blocks, title and text."""
    output = self.workdir / 'eval/bm25/metrics.json'
    if output.exists():
      return json.loads(output.read_text())
    if not all(map(importlib.util.find_spec, ('bm25s', 'Stemmer'))):
      print('bm25s or PyStemmer is not installed: the table has no BM25')
      return None
    import bm25s
    import Stemmer

    from realm_jax.corpus.store import Corpus
    from realm_jax.data.questions import read_questions
    from realm_jax.evaluate.evaluate import RECALL_AT
    from realm_jax.scores import qa, retrieval
    from realm_jax.train import answer, dev

    corpus = Corpus.open(str(self.workdir / 'corpus'))
    asked = read_questions(self.test)
    logging.getLogger('bm25s').setLevel(logging.WARNING)
    stemmer = Stemmer.Stemmer('english')

    def words(texts: list[str]) -> Any:
      return bm25s.tokenize(
        texts, stopwords='en', stemmer=stemmer, show_progress=False
      )

    texts = corpus.texts(0, corpus.num_blocks)
    titled = [f'{corpus.title(row)} {text}' for row, text in enumerate(texts)]
    index = bm25s.BM25()
    index.index(words(titled), show_progress=False)
    row_QK, score_QK = index.retrieve(
      words([question.question for question in asked]),
      k=min(max(RECALL_AT), corpus.num_blocks),
      show_progress=False,
    )
    found = [
      answer.Evidence(row_K.tolist(), score_K.tolist())
      for row_K, score_K in zip(row_QK, score_QK, strict=True)
    ]
    hit_QK = dev.hits(asked, found, corpus, max(RECALL_AT))
    metrics = {
      f'recall@{k}': qa.bootstrap(retrieval.recall_at(hit_QK, k).astype(float))
      for k in RECALL_AT
    }
    output.parent.mkdir(parents=True)
    output.write_text(json.dumps(metrics, indent=2))
    return metrics

  def _summary(self, rows: dict[str, dict[str, Any] | None]) -> None:
    """Writes summary.json and learning.png, and prints the table."""
    from realm_jax.evaluate import curves

    scores = ('recall@1', 'recall@5', 'recall@20', 'exact_match', 'f1')
    table = {
      name: {
        score: metrics[score]['value'] if metrics.get(score) else None
        for score in scores
      }
      for name, metrics in rows.items()
      if metrics
    }
    swaps = _lines(self.workdir / 'pretrain/swaps.jsonl')
    utility = [
      line['retrieval_utility']
      for line in _lines(self.workdir / 'pretrain/metrics.jsonl')
      if 'retrieval_utility' in line
    ]
    curves.plot(self.workdir / 'pretrain', self.workdir / 'learning.png')
    seconds = self._seconds()
    summary = {
      'nq_test': table,
      'index_versions_used': len({(s['index'], s['version']) for s in swaps}),
      'retrieval_utility_first': utility[0],
      'retrieval_utility_last': utility[-1],
      'seconds': {**seconds, 'total': sum(seconds.values())},
    }
    (self.workdir / 'summary.json').write_text(json.dumps(summary, indent=2))
    print(f'\n{"NQ test":20}' + ''.join(f'{score:>12}' for score in scores))
    for name, row in table.items():
      cells = (
        f'{"" if value is None else format(value, ".1f"):>12}'
        for value in row.values()
      )
      print(f'{name:20}' + ''.join(cells))
    for name, value in list(summary.items())[1:-1]:
      print(f'{name}: {value:.3g}')
    print('seconds: ' + ', '.join(f'{k} {v:.0f}' for k, v in seconds.items()))

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
    self.test = cut(self.test, 40)

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
    return json.loads(file.read_text()) if file.exists() else {}

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
    file = self._pipeline.workdir / 'seconds.json'
    file.write_text(json.dumps(seconds, indent=2))
    print(f'{self._name}: {took:.0f} s', flush=True)


def _steps(workdir: pathlib.Path) -> list[int]:
  """Steps of the checkpoints that are complete."""
  from realm_jax.workdir import checkpoints

  return checkpoints.steps(workdir)


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text().splitlines()]
