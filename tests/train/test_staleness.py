"""The age of the index in steps."""

from realm_jax.refresh_config import RefreshConfig
from realm_jax.train.staleness import Staleness


def test_age_is_counted_from_the_embedder_of_the_index():
  staleness = Staleness(RefreshConfig(), 1000, frozen=False)
  for step in range(10, 20):
    staleness.step_done(step, since=10)
  assert staleness.metrics(19, 10, window=True) == {
    'index_step': 10,
    'staleness_steps': 9,
    'staleness_p50': 5,
    'staleness_p95': 9,
  }
  # The next window starts empty.
  assert staleness.metrics(19, 10, window=True) == {
    'index_step': 10,
    'staleness_steps': 9,
  }


def test_lines_between_leave_the_window_to_the_next():
  staleness = Staleness(RefreshConfig(), 1000, frozen=False)
  staleness.step_done(5, since=0)
  assert 'staleness_p50' not in staleness.metrics(5, 0, window=False)
  assert staleness.metrics(5, 0, window=True)['staleness_p50'] == 5


def test_rolling_rows_are_at_most_a_round_and_a_step_old():
  refresh = RefreshConfig(where='rolling', rows_per_step=64)
  staleness = Staleness(refresh, 1000, frozen=False)
  values = staleness.metrics(100, 0, window=False)
  assert values == {'index_step': 83, 'staleness_steps': 17}
  assert staleness.metrics(7, 0, window=False)['staleness_steps'] == 7


def test_a_frozen_embedder_has_no_stale_index():
  staleness = Staleness(RefreshConfig(), 1000, frozen=True)
  assert staleness.metrics(100, 0, window=False)['staleness_steps'] == 0
