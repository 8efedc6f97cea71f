"""Scores of what was retrieved."""

import numpy as np


def recall_at(hits_QK: np.ndarray, k: int) -> np.ndarray:
  """Whether one of the first k passages holds an answer.

  Args:
    hits_QK: bool, whether the passage at each place holds an answer; best
      place first, False where there is no passage.
    k: how many places count.

  Returns:
    bool [Q]; its mean is recall@k.

  Raises:
    ValueError: k is not between 1 and the number of places.
  """
  if hits_QK.ndim != 2 or not 1 <= k <= hits_QK.shape[1]:
    raise ValueError(
      f'recall@{k}: hits of shape {hits_QK.shape}, expected [questions, '
      f'places] with at least {k} places'
    )
  return np.asarray(hits_QK[:, :k], bool).any(axis=1)
