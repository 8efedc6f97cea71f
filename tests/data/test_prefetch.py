import itertools

import numpy as np
import pytest

from realm_jax.data.prefetch import prefetch


class Numbers:
  def __init__(self, bad=None):
    self.bad = bad
    self.asked = []

  def __getitem__(self, step):
    self.asked.append(step)
    if step == self.bad:
      raise ValueError(f'no batch for step {step}')
    return {'x_B': np.full(2, step)}


@pytest.mark.parametrize('depth', [1, 3, 8])
def test_batches_come_in_order_and_ahead(depth):
  source = Numbers()
  batches = prefetch(source, 5, depth)
  taken = [batch['x_B'][0] for batch in itertools.islice(batches, 20)]
  assert taken == list(range(5, 25))
  assert max(source.asked) <= 24 + depth + 1  # bounded


def test_an_error_reaches_the_caller():
  batches = prefetch(Numbers(bad=2), 0, 4)
  assert [next(batches)['x_B'][0] for _ in range(2)] == [0, 1]
  with pytest.raises(ValueError, match='no batch for step 2'):
    next(batches)
