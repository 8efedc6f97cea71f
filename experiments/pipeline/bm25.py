"""Recall of BM25 over a corpus store, by the library bm25s."""

import logging
import os
from typing import Any


def recall(
  corpus_path: str | os.PathLike[str], tests: dict[str, str]
) -> dict[str, dict[str, Any]]:
  """Recall@k in percent of BM25 over the same blocks, title and text.

  English stemmer, stop words out.

  Args:
    corpus_path: a store.
    tests: name to a file of questions.

  Returns:
    Name to `recall@k` to value and 95% interval, as in metrics.json.
  """
  import bm25s
  import Stemmer

  from realm_jax.corpus.store import Corpus
  from realm_jax.data.questions import read_questions
  from realm_jax.evaluate.evaluate import RECALL_AT
  from realm_jax.scores import qa, retrieval
  from realm_jax.train import answer, dev

  corpus = Corpus.open(os.fspath(corpus_path))
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
  found = {}
  for name, file in tests.items():
    asked = read_questions(file)
    row_QK, score_QK = index.retrieve(
      words([question.question for question in asked]),
      k=min(max(RECALL_AT), corpus.num_blocks),
      show_progress=False,
    )
    evidence = [
      answer.Evidence(row_K.tolist(), score_K.tolist())
      for row_K, score_K in zip(row_QK, score_QK, strict=True)
    ]
    hit_QK = dev.hits(asked, evidence, corpus, max(RECALL_AT))
    found[name] = {
      f'recall@{k}': qa.bootstrap(retrieval.recall_at(hit_QK, k).astype(float))
      for k in RECALL_AT
    }
  return found
