"""Offline evaluation of a checkpoint on questions."""

import json
import math
from typing import Any

import numpy as np
from etils import epath

from realm_jax.corpus.store import Corpus
from realm_jax.data.questions import Question, read_questions
from realm_jax.evaluate import report
from realm_jax.evaluate.restored import Restored, Textless, restore
from realm_jax.parallel import processes
from realm_jax.scores import qa, retrieval
from realm_jax.train import answer, dev
from realm_jax.workdir import files

RECALL_AT = (1, 5, 20)


def evaluate(
  workdir: str,
  questions: str,
  output: str,
  step: int | None = None,
  index_version: int | None = None,
  allow_stale_index: bool = False,
) -> dict[str, Any]:
  """Answers all questions with a checkpoint and its index, and scores them.

  Args:
    workdir: of ict or pretrain (retrieval only) or finetune.
    questions: a file of questions, or `tfds:NAME`.
    output: directory for metrics.json, predictions.jsonl and report.html.
    step: see restored.restore.
    index_version: see restored.restore.
    allow_stale_index: see restored.restore.

  Returns:
    What metrics.json holds: scores in percent with 95% bootstrap intervals;
    None where the checkpoint has no reader, or no index.
  """
  directory = check_output(output)
  asked = read_questions(questions)
  restored = restore(workdir, step, index_version, allow_stale_index)
  return score(restored, asked, questions, [directory])


def check_output(output: str) -> epath.Path:
  directory = epath.Path(output)
  if directory.exists() and not directory.is_dir():
    raise ValueError(f'--output {output}: is a file, expected a directory')
  return directory


def score(
  restored: Restored,
  asked: list[Question],
  questions: str,
  directories: list[epath.Path],
) -> dict[str, Any]:
  """Asks a checkpoint; leaves what `evaluate` does in each directory.

  Args:
    restored: the checkpoint with its index and corpus.
    asked: the questions.
    questions: the file that they are from.
    directories: made where they are missing.

  Returns:
    As `evaluate`.
  """
  if isinstance(restored.corpus, Textless):
    raise ValueError(f'{restored.workdir.path}: {restored.why_silent}')
  if processes.is_first():
    for directory in directories:
      _make(directory)
  texts = [question.question for question in asked]
  evidence, answers = _run(restored, texts)
  hit_QK = _hits(asked, evidence, restored.corpus)
  metrics = {
    'n': len(asked),
    **_answer_scores(asked, answers),
    **_recall_scores(hit_QK),
    'match': match(asked),
    'checkpoint_step': restored.checkpoint_step,
    'index_step': restored.index_step,
    'corpus_fingerprint': restored.corpus.fingerprint,
  }
  if not processes.is_first():
    return metrics
  predictions = [
    prediction(question, found, shown, restored)
    for question, found, shown in zip(asked, answers, evidence, strict=True)
  ]
  page = report.html(restored, questions, metrics, asked, predictions, hit_QK)
  lines = ''.join(
    json.dumps(line, ensure_ascii=False) + '\n' for line in predictions
  )
  for directory in directories:
    # While they do not belong together, there are no metrics.
    (directory / 'metrics.json').unlink(missing_ok=True)
    files.write_text(directory / 'predictions.jsonl', lines)
    files.write_text(directory / 'report.html', page)
    files.write_json(directory / 'metrics.json', metrics)
  return metrics


def _make(directory: epath.Path) -> None:
  """Before an hour's work, not after it."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f'--output {directory}: {error.strerror}') from error


def match(asked: list[Question]) -> str:
  """The answer-match mode of a file: normalized, regex, or both of them."""
  return '+'.join(sorted({dev.mode(question) for question in asked}))


def passages(
  restored: Restored, evidence: answer.Evidence, text: bool
) -> list[dict[str, Any]]:
  """Passages as JSON, with their softmax over those shown.

  The null document has its share of it, where there is one.
  """
  corpus = restored.corpus
  if not evidence.rows:
    return []
  scores = list(evidence.scores)
  if evidence.null_score is not None:
    scores.append(evidence.null_score)
  top = max(scores)
  weights = [math.exp(score - top) for score in scores]
  total = sum(weights)
  return [
    {
      'block': row,
      'document': document,
      'title': title,
      **({'text': corpus.text(row)} if text else {}),
      'score': score,
      'probability': weight / total,
    }
    for row, (document, title), score, weight in zip(
      evidence.rows,
      map(corpus.document, evidence.rows),
      evidence.scores,
      weights[: len(evidence.rows)],
      strict=True,
    )
  ]


def prediction(
  question: Question,
  found: answer.Answer | None,
  shown: answer.Evidence,
  restored: Restored,
) -> dict[str, Any]:
  """A line of predictions.jsonl."""
  processes.beat('writing what was found')
  right = None
  if found is not None:
    right = qa.exact_match(found.text, question.answers, dev.mode(question))
  return {
    'id': question.id,
    'question': question.question,
    'prediction': None if found is None else found.text,
    'score': _finite(None if found is None else found.score),
    'correct': right,
    'evidence': passages(restored, shown, text=False),
  }


def _run(
  restored: Restored, texts: list[str]
) -> tuple[list[answer.Evidence], list[answer.Answer | None]]:
  """Evidence and answers of all questions."""
  context = (restored.config, restored.corpus, restored.mesh)
  if restored.index is None:
    closed = answer.answer_closed_book(restored.params, texts, *context)
    return [found.evidence for found in closed], list(closed)
  if not restored.reads:
    k = min(max(RECALL_AT), restored.corpus.num_blocks)
    evidence = answer.retrieve(
      restored.params,
      restored.index,
      texts,
      k,
      *context,
      null=restored.has_null,
    )
    return evidence, [None] * len(texts)
  answers = answer.answer(restored.params, restored.index, texts, *context)
  return [found.evidence for found in answers], list(answers)


def _answer_scores(
  asked: list[Question], answers: list[answer.Answer | None]
) -> dict[str, Any]:
  if answers[0] is None:
    return {'exact_match': None, 'f1': None}
  exact, overlap = [], []
  for question, found in zip(asked, answers, strict=True):
    assert found is not None
    exact.append(
      qa.exact_match(found.text, question.answers, dev.mode(question))
    )
    if not question.regex:  # a regular expression has no words to share
      overlap.append(qa.f1(found.text, question.answers))
  return {
    'exact_match': qa.bootstrap(np.array(exact, float)),
    'f1': qa.bootstrap(np.array(overlap)) if overlap else None,
  }


def _hits(
  asked: list[Question], evidence: list[answer.Evidence], corpus: Corpus
) -> np.ndarray | None:
  """Which passages hold an answer, bool [Q, 20]; None: there are none."""
  if not any(found.rows for found in evidence):
    return None
  return dev.hits(asked, evidence, corpus, max(RECALL_AT))


def _recall_scores(hit_QK: np.ndarray | None) -> dict[str, Any]:
  if hit_QK is None:
    return {f'recall@{k}': None for k in RECALL_AT}
  return {
    f'recall@{k}': qa.bootstrap(retrieval.recall_at(hit_QK, k).astype(float))
    for k in RECALL_AT
  }


def _finite(score: float | None) -> float | None:
  return score if score is not None and math.isfinite(score) else None
