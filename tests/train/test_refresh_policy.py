"""When versions are made, taken and waited for."""

import types

import pytest

from realm_jax import config as config_lib
from realm_jax.index.refresh import PASSED_OVER
from realm_jax.refresh_config import RefreshConfig
from realm_jax.train.index_feed import IndexFeed
from realm_jax.train.refresh_policy import Patience, make_due, take_due
from realm_jax.workdir import files, leases


def made(steps, last, fresh=1.0, **keys):
  refresh = RefreshConfig(where='in_process', **keys)
  return [
    step
    for step in range(steps + 1)
    if make_due(refresh, step, last == step, lambda: fresh)
  ]


def test_in_process_versions_are_made_when_due():
  assert made(10, 10, every=4) == [0, 4, 8, 10]
  schedule = {'policy': 'schedule', 'schedule': '0:2, 5:3, 11:0, 20:5'}
  assert made(26, 26, **schedule) == [2, 4, 5, 8, 20, 25, 26]
  adaptive = {'policy': 'adaptive', 'every': 4, 'min_overlap': 0.5}
  assert made(9, 9, fresh=0.5, **adaptive) == [9]
  assert made(9, 9, fresh=0.4, **adaptive) == [0, 4, 8, 9]
  delayed = {'policy': 'simulate_delay', 'every': 5, 'delay_steps': 7}
  assert made(11, 11, **delayed) == [0, 5, 10, 11]


def test_the_index_is_compared_only_when_it_may_be_made():
  asked = []
  refresh = RefreshConfig(where='in_process', policy='adaptive', every=3)
  for step in range(7):
    make_due(refresh, step, False, lambda step=step: asked.append(step) or 1.0)
  assert asked == [0, 3, 6]


def test_a_schedule_spaces_the_swaps():
  refresh = RefreshConfig(policy='schedule', schedule='0:3,10:5,30:0')
  assert [take_due(refresh, step, 4) for step in (5, 6, 7)] == [0, 0, 1]
  assert [take_due(refresh, step, 8) for step in (11, 12, 13)] == [0, 0, 1]
  assert not take_due(refresh, 40, 8)
  assert take_due(RefreshConfig(), 5, 5)


class Feed:
  """An index that becomes new when it was asked for often enough."""

  def __init__(self, since, lives=True, after=3):
    self.since, self.lives, self.after = since, lives, after
    self.calls = []

  def refresher_works_on(self, step):
    del step
    self.calls.append('lives?')
    return self.lives

  def swap(self):
    self.calls.append('swap')
    self.after -= 1
    if self.after == 0:
      self.since = 20


def wait(feed, step, patience=None, stopped=lambda: False):
  patience = patience or Patience(
    RefreshConfig(policy='bounded', max_staleness_steps=5, poll_seconds=0.001)
  )
  return patience.wait(
    feed, step, lambda: feed.calls.append('save'), feed.swap, stopped
  )


def test_bounded_waits_for_an_index_that_is_new_enough(capsys):
  feed = Feed(since=10)
  assert not wait(feed, 14)  # step 15 may use it
  assert feed.calls == []
  assert not wait(feed, 15)
  assert feed.calls == ['lives?', 'save', 'swap', *['lives?', 'swap'] * 2]
  said = capsys.readouterr().err.splitlines()
  assert said[0].startswith('step 15: waits for the refresher: the index is of')
  assert said[1].startswith('step 15: the index is of step 20 now, after ')


def test_bounded_ends_without_a_refresher(capsys):
  feed = Feed(since=0, lives=False)
  patience = Patience(RefreshConfig(policy='bounded', max_staleness_steps=20))
  assert not wait(feed, 25, patience)
  assert feed.calls == ['lives?']
  said = capsys.readouterr().err
  assert said.startswith('step 25: no refresher is running, or it cannot')
  assert not wait(feed, 26, patience)  # it does not look at every step
  assert feed.calls == ['lives?']
  feed.lives = True
  assert not wait(feed, 27, patience)
  assert 'swap' in feed.calls


def test_a_step_that_was_passed_over_is_not_waited_for(tmp_path):
  feed = types.SimpleNamespace(_workdir=types.SimpleNamespace(path=tmp_path))

  def works_on(step):
    return IndexFeed.refresher_works_on(feed, step)

  assert not works_on(5)
  with leases.hold(tmp_path, 'refresher'):
    assert works_on(5)
    files.write_json(tmp_path / PASSED_OVER, {'step': 4})
    assert works_on(5) and not works_on(4)


def test_bounded_ends_on_sigterm():
  feed = Feed(since=0)
  came = iter([False, True])
  assert wait(feed, 25, stopped=lambda: next(came))
  assert feed.calls == ['lives?', 'save', 'swap', 'lives?']


def test_other_policies_do_not_wait():
  feed = Feed(since=0)
  assert not wait(feed, 999, Patience(RefreshConfig(max_staleness_steps=1)))
  assert feed.calls == []


@pytest.mark.parametrize(
  'keys, error',
  [
    (
      {'where': 'in_process', 'policy': 'bounded'},
      'refresh.policy: bounded needs refresh.where separate',
    ),
    (
      {'policy': 'simulate_delay'},
      'refresh.policy: simulate_delay needs refresh.where in_process',
    ),
    (
      {'where': 'rolling', 'policy': 'adaptive'},
      'refresh.policy: adaptive is about versions; there are none with',
    ),
    ({'where': 'none', 'policy': 'schedule'}, 'with refresh.where none'),
    (
      {'policy': 'adaptive', 'probe_queries': 0},
      'refresh.probe_queries: 0, but refresh.policy adaptive',
    ),
    ({'replay': 'swaps.jsonl', 'policy': 'bounded'}, 'refresh.replay: stands'),
    (
      {'priority_rows': 2, 'write_back': True},
      'refresh.priority_rows: 2, but refresh.write_back renews',
    ),
    ({'priority_rows': 1}, 'refresh.priority_rows: 1, but rows keep the mean'),
    ({'schedule': '0:5,x'}, "refresh.schedule: 'x', expected FIRST_STEP:EVERY"),
    ({'schedule': '5:5'}, 'must start at step 0'),
    ({'schedule': '0:5,9:1,7:2'}, 'in ascending order'),
    ({'min_overlap': 1.5}, 'refresh.min_overlap: 1.5, must be a fraction'),
    ({'max_staleness_steps': 0}, 'refresh.max_staleness_steps: 0, must be'),
  ],
)
def test_what_cannot_be_is_refused(keys, error):
  with pytest.raises(ValueError) as raised:
    config_lib.from_dict({'refresh': keys})
  assert error in str(raised.value)
