"""Scores on held-out questions while a stage trains."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.data.questions import Question
from realm_jax.index.scann_host import HostIndex
from realm_jax.index.search import Index
from realm_jax.parallel import processes
from realm_jax.scores import qa, retrieval
from realm_jax.text import answers as answers_lib
from realm_jax.train import answer
from realm_jax.train.state import TrainState

Searchable = Index | HostIndex | None
Evaluate = Callable[[TrainState, Searchable], dict[str, float]]
_RECALL_AT = (1, 5)


def mode(question: Question) -> answers_lib.Mode:
  """How a question's answers are matched."""
  return 'regex' if question.regex else 'normalized'


def hits(
  questions: Sequence[Question],
  evidence: Sequence[answer.Evidence],
  corpus: Corpus,
  k: int,
) -> np.ndarray:
  """Which of the first k passages hold an answer, bool [Q, k]."""
  hit_QK = np.zeros((len(questions), k), bool)
  for hit_K, question, found in zip(hit_QK, questions, evidence, strict=True):
    processes.beat('looking for answers in what was found')
    for place, row in enumerate(found.rows[:k]):
      hit_K[place] = answers_lib.has_answer(
        corpus.text(row), question.answers, mode(question)
      )
  return hit_QK


def retrieval_dev(
  questions: Sequence[Question],
  config: Config,
  corpus: Corpus,
  mesh: jax.sharding.Mesh,
) -> Evaluate:
  """Zero-shot recall (percent) of the questions themselves as queries."""
  texts = [question.question for question in questions]
  k = min(max(_RECALL_AT), corpus.num_blocks)

  def evaluate(state: TrainState, index: Searchable) -> dict[str, float]:
    assert index is not None
    evidence = answer.retrieve(
      state.params, index, texts, k, config, corpus, mesh
    )
    hit_QK = hits(questions, evidence, corpus, max(_RECALL_AT))
    return {
      f'recall@{n}': 100 * float(retrieval.recall_at(hit_QK, n).mean())
      for n in _RECALL_AT
    }

  return evaluate


def answer_dev(
  questions: Sequence[Question],
  config: Config,
  corpus: Corpus,
  mesh: jax.sharding.Mesh,
) -> Evaluate:
  """Exact match (percent), open or closed book."""
  texts = [question.question for question in questions]

  def evaluate(state: TrainState, index: Searchable) -> dict[str, float]:
    if index is None:
      answers = answer.answer_closed_book(
        state.params, texts, config, corpus, mesh
      )
    else:
      answers = answer.answer(state.params, index, texts, config, corpus, mesh)
    right = [
      qa.exact_match(found.text, question.answers, mode(question))
      for found, question in zip(answers, questions, strict=True)
    ]
    return {'exact_match': 100 * float(np.mean(right))}

  return evaluate
