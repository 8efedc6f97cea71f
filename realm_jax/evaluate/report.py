"""report.html: what an evaluation found, for a person."""

from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from realm_jax.corpus.store import Corpus
from realm_jax.data.questions import Question
from realm_jax.evaluate.restored import Restored, Textless

_QUESTIONS = 200  # shown, some of each part of the file
_PASSAGES = 5  # of each
_SCORES = ('exact_match', 'f1', 'recall@1', 'recall@5', 'recall@20')
# Ranks, counted from 0, of the first passage that holds an answer.
_BANDS = (
  ('the first', 0, 1),
  ('2nd to 5th', 1, 5),
  ('6th to 20th', 5, 20),
  ('none of 20', 20, 21),
)


def html(
  restored: Restored,
  questions: str,
  metrics: dict[str, Any],
  asked: Sequence[Question],
  predictions: Sequence[dict[str, Any]],
  hit_QK: np.ndarray | None,
) -> str:
  """The page: scores, where questions are lost, and questions with passages.

  Args:
    restored: the checkpoint.
    questions: the file.
    metrics: metrics.json.
    asked: the questions.
    predictions: lines of predictions.jsonl.
    hit_QK: which passages hold an answer, bool [Q, 20]; None: closed book.

  Returns:
    HTML that needs no other file.
  """
  right_Q = [line['correct'] for line in predictions]
  answered = right_Q[0] is not None
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('realm_jax', 'evaluate'),
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  every = -(-len(asked) // _QUESTIONS)
  return environment.get_template('report.html').render(
    workdir=str(restored.workdir.path),
    stage=restored.workdir.stage,
    questions=questions,
    metrics=metrics,
    scores=[(name, metrics[name]) for name in _SCORES if metrics[name]],
    answered=answered,
    bands=[] if hit_QK is None else _bands(hit_QK, right_Q),
    shown=[
      _shown(asked[q], predictions[q], hit_QK, q, restored.corpus)
      for q in range(0, len(asked), every)
    ],
  )


def _bands(
  hit_QK: np.ndarray, right_Q: Sequence[bool | None]
) -> list[dict[str, Any]]:
  rank_Q = np.where(hit_QK.any(1), hit_QK.argmax(1), hit_QK.shape[1])
  right = np.array(right_Q, bool)
  bands = []
  for name, first, end in _BANDS:
    inside_Q = (first <= rank_Q) & (rank_Q < end)
    bands.append(
      {
        'name': name,
        'count': int(inside_Q.sum()),
        'right': int((inside_Q & right).sum()),
      }
    )
  return bands


def _shown(
  question: Question,
  line: dict[str, Any],
  hit_QK: np.ndarray | None,
  q: int,
  corpus: Corpus | Textless,
) -> dict[str, Any]:
  places = [
    place | {'text': corpus.text(place['block']), 'holds': hit_QK[q, rank]}
    for rank, place in enumerate(line['evidence'][:_PASSAGES])
    if hit_QK is not None
  ]
  return line | {
    'answers': question.answers,
    'regex': question.regex,
    'places': places,
    'found': hit_QK is not None and hit_QK[q].any(),
  }
