import numpy as np
import pytest

from realm_jax.scores.retrieval import recall_at

HIT_QK = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 0]], bool)


def test_recall_counts_the_first_k():
  assert recall_at(HIT_QK, 1).tolist() == [False, True, False]
  assert recall_at(HIT_QK, 2).tolist() == [False, True, False]
  assert recall_at(HIT_QK, 3).tolist() == [True, True, False]


def test_recall_refuses_more_places_than_there_are():
  for k in (0, 4):
    with pytest.raises(ValueError, match=f'recall@{k}: .*at least {k}'):
      recall_at(HIT_QK, k)
