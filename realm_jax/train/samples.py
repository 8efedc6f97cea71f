"""samples.jsonl: what pre-training retrieves for a few sentences."""

import itertools
import math
from typing import Any

import jax
import numpy as np
from etils import epath

from realm_jax.corpus.store import Corpus
from realm_jax.workdir.metrics import open_log, plain

SAMPLES = 4  # examples of a step, the first of its batch


class SampleLog:
  """Writes sampled retrievals; process 0 of a run has one.

  A line is an example: `step`, `sentence` (each run of masks is one [MASK]),
  `answer` (what was masked), and `candidates`: `block` (null: the null
  document), `document`, `title`, `text`, `probability` p(z|x) and
  `answer_probability` p(y|z,x).

  Args:
    path: the workdir.
    corpus: Z.
    resumed_step: lines of later steps are dropped; None: a run from step 0.
  """

  def __init__(
    self, path: epath.PathLike, corpus: Corpus, resumed_step: int | None
  ):
    self._corpus = corpus
    self._lines = open_log(epath.Path(path) / 'samples.jsonl', resumed_step)

  def write(
    self,
    step: int,
    batch: dict[str, np.ndarray],
    sample: dict[str, np.ndarray],
  ) -> None:
    """Writes the first examples of a step.

    Args:
      step: the step, counted from 1.
      batch: that was trained on, of this process: the first of the whole.
      sample: of `take`, on the host; of the whole batch.
    """
    for place in range(min(len(sample['row_BK']), len(batch['query_BL']))):
      real_M = batch['weight_BM'][place] > 0
      self._lines.append(
        {
          'step': step,
          'sentence': self._masked_text(batch['query_BL'][place]),
          'answer': self._corpus.tokenizer.decode(
            batch['target_BM'][place][real_M].tolist()
          ),
          'candidates': self._candidates(
            *(
              sample[name][place]
              for name in ('row_BK', 'log_prior_BK', 'log_prob_BK')
            )
          ),
        }
      )

  def _masked_text(self, token_L: np.ndarray) -> str:
    tokenizer = self._corpus.tokenizer
    parts = [
      '[MASK]' if masked else tokenizer.decode(group)
      for masked, group in itertools.groupby(
        token_L.tolist(), lambda token: token == tokenizer.mask_id
      )
    ]
    return ' '.join(part for part in parts if part)

  def _candidates(
    self, row_K: np.ndarray, log_prior_K: np.ndarray, log_prob_K: np.ndarray
  ) -> list[dict[str, Any]]:
    """The null document, then the passages in order of retrieval."""
    rows = [None, *row_K.tolist()]
    return [
      {
        **self._passage(row),
        'probability': plain(math.exp(log_prior)),
        'answer_probability': plain(math.exp(log_prob)),
      }
      for row, log_prior, log_prob in zip(
        rows, log_prior_K.tolist(), log_prob_K.tolist(), strict=True
      )
      if row is None or row >= 0
    ]

  def _passage(self, row: int | None) -> dict[str, Any]:
    if row is None:
      return {'block': None, 'document': None, 'title': '', 'text': ''}
    document, title = self._corpus.document(row)
    return {
      'block': row,
      'document': document,
      'title': title,
      'text': self._corpus.text(row),
    }


def take(
  row_BK: jax.Array, log_prior_BK: jax.Array, log_prob_BK: jax.Array
) -> dict[str, jax.Array]:
  """What a step hands out for `SampleLog.write`.

  Args:
    row_BK: retrieved rows, -1 where there is none.
    log_prior_BK: log p(z|x), K one more, the null document first.
    log_prob_BK: log p(y|z,x) of all masked tokens together.
  """
  return {
    'row_BK': row_BK[:SAMPLES],
    'log_prior_BK': log_prior_BK[:SAMPLES],
    'log_prob_BK': log_prob_BK[:SAMPLES],
  }
