"""Scores of predicted answers: exact match, F1, and their uncertainty."""

import collections
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from realm_jax.text.answers import Mode, compile_regex, normalize

_RESAMPLES = 1000


def exact_match(prediction: str, answers: Sequence[str], mode: Mode) -> bool:
  """Whether a prediction is one of the answers.

  Args:
    prediction: the predicted text.
    answers: the right answers, or their regular expressions.
    mode: `normalized`: equal after SQuAD's official normalisation;
      `raw`: equal; `regex`: an expression matches from the prediction's start
      (CuratedTREC), upper and lower case alike.

  Raises:
    ValueError: mode `token`, by which passages are matched and not
      predictions, or an answer that is no regular expression.
  """
  if mode == 'normalized':
    normal = normalize(prediction)
    return any(normal == normalize(answer) for answer in answers)
  if mode == 'raw':
    return prediction in answers
  if mode == 'regex':
    return any(compile_regex(answer).match(prediction) for answer in answers)
  raise ValueError(
    f'exact match in mode {mode!r}: choose from normalized, raw, regex'
  )


def f1(prediction: str, answers: Sequence[str]) -> float:
  """The official F1 of SQuAD: overlap of normalised words, the best answer's.

  Args:
    prediction: the predicted text.
    answers: the right answers, not regular expressions.

  Returns:
    A fraction in [0, 1]; 0 without answers. Two texts without words are equal.
  """
  return max((_f1(prediction, answer) for answer in answers), default=0.0)


def bootstrap(values: npt.ArrayLike, seed: int = 0) -> dict[str, float]:
  """Mean of a score over questions, with its 95% bootstrap interval.

  Args:
    values: [n] scores of single questions: booleans, or fractions in [0, 1].
    seed: of the resampling.

  Returns:
    `value`, `low` and `high` in percent.

  Raises:
    ValueError: there are no values.
  """
  values_Q = np.asarray(values, np.float64)
  if values_Q.ndim != 1 or not len(values_Q):
    raise ValueError(
      f'bootstrap: values of shape {values_Q.shape}, expected one a question'
    )
  generator = np.random.default_rng(seed)
  # One resample at a time: 1000 x 10,000 indices at once would be 80 MB.
  means = [
    values_Q[generator.integers(len(values_Q), size=len(values_Q))].mean()
    for _ in range(_RESAMPLES)
  ]
  low, high = np.percentile(means, [2.5, 97.5])
  return {
    'value': 100 * float(values_Q.mean()),
    'low': 100 * float(low),
    'high': 100 * float(high),
  }


def _f1(prediction: str, answer: str) -> float:
  predicted, right = normalize(prediction).split(), normalize(answer).split()
  if not predicted or not right:
    return float(predicted == right)
  shared = collections.Counter(predicted) & collections.Counter(right)
  # Equal to the harmonic mean of precision and recall.
  return 2 * shared.total() / (len(predicted) + len(right))
