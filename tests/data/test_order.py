import numpy as np
import pytest

from realm_jax.data.order import Order, rotate


@pytest.mark.parametrize(('items', 'batch'), [(10, 4), (3, 8), (1, 2), (64, 8)])
def test_each_epoch_visits_each_item_once(items, batch):
  order = Order(items, batch, seed=3)
  visits = [order.visit(step) for step in range(5 * items)]
  epochs = np.concatenate([epoch for epoch, _ in visits])
  walk = np.concatenate([item for _, item in visits])
  for epoch in range(4):
    assert sorted(walk[epochs == epoch]) == list(range(items))
  assert (np.diff(epochs) >= 0).all()


def test_epochs_and_seeds_differ():
  first, second = Order(100, 100, 0).visit(0)[1], Order(100, 100, 0).visit(1)[1]
  other = Order(100, 100, 1).visit(0)[1]
  assert (first != second).sum() > 80
  assert (first != other).sum() > 80
  assert (first != np.arange(100)).sum() > 80


def test_slices_are_those_of_the_whole_batch():
  whole = Order(50, 24, seed=7)
  for count in (2, 3, 8):
    parts = [Order(50, 24, 7, index, count) for index in range(count)]
    for step in (0, 5):
      np.testing.assert_array_equal(
        np.concatenate([part.visit(step)[1] for part in parts]),
        whole.visit(step)[1],
      )
      np.testing.assert_array_equal(
        np.concatenate([part.random(step, 6) for part in parts]),
        whole.random(step, 6),
      )


def test_random_numbers_are_even_and_differ_by_step():
  order = Order(50, 1000, seed=0)
  draws = order.random(0, 7)
  assert draws.shape == (1000, 7)
  assert len(np.unique(draws)) == 7000
  assert abs(draws.mean() - 0.5) < 0.02
  assert not np.intersect1d(draws, order.random(1, 7)).size


def test_processes_must_divide_the_batch():
  with pytest.raises(ValueError, match='batch_size: 10'):
    Order(50, 10, 0, 0, 3)


def test_rotation_visits_all_in_turn():
  assert sorted(rotate(np.arange(7, 14), 7, 5)) == list(range(7))
