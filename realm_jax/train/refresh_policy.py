"""When a version of the index is made, taken or waited for.

What each policy means stands in refresh_config.py.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

from realm_jax.parallel import processes
from realm_jax.refresh_config import RefreshConfig

# Of max_staleness_steps: so much later a trainer whose refresher is gone looks
# for one again.
_LOOK_AGAIN = 0.1


def make_due(
  refresh: RefreshConfig, step: int, last: bool, freshness: Callable[[], float]
) -> bool:
  """In process: whether a version is made between `step` and the next.

  Args:
    refresh: the config.
    step: steps done.
    last: there is no next one: the index must belong to the final parameters.
    freshness: measures how right the index in use still is.
  """
  if last:
    return True
  if refresh.policy == 'schedule':
    first, every = refresh.range_of(step)
    return every > 0 and step > 0 and (step - first) % every == 0
  if step % refresh.every:
    return False
  return refresh.policy != 'adaptive' or freshness() < refresh.min_overlap


def longest(refresh: RefreshConfig, num_steps: int) -> int:
  """In process: the most steps between two versions (adaptive: the least).

  Args:
    refresh: the config.
    num_steps: of the run.
  """
  due = [
    step
    for step in range(1, num_steps)
    if make_due(refresh, step, False, lambda: 0.0)
  ]
  steps = [0, *due, num_steps]
  return max(after - before for before, after in itertools.pairwise(steps))


def take_due(refresh: RefreshConfig, step: int, swapped: int) -> bool:
  """Separate: whether a version that is there is taken.

  Args:
    refresh: the config.
    step: steps done.
    swapped: steps that were done at the last swap.
  """
  if refresh.policy != 'schedule':
    return True
  _, every = refresh.range_of(step)
  return every > 0 and step - swapped >= every


def too_stale(refresh: RefreshConfig, step: int, since: int) -> bool:
  """Separate: whether the next step must not run on an index of `since`."""
  return (
    refresh.policy == 'bounded'
    and step + 1 - since > refresh.max_staleness_steps
  )


class Patience:
  """Waits, by the policy `bounded`, until the index is new enough.

  Ends without it when SIGTERM came, or no refresher is there (one that died on
  another machine is missed a quarter of an hour later), or it passed the step
  over (a version below index.min_recall, a damaged checkpoint): training goes
  on with the index it has, and looks for a refresher again some steps later.
  """

  def __init__(self, refresh: RefreshConfig):
    self._refresh = refresh
    self._look_again = 0

  def wait(
    self,
    feed: Any,
    step: int,
    save: Callable[[], None],
    swap: Callable[[], object],
    stopped: Callable[[], bool],
  ) -> bool:
    """Waits before a step; all processes call it alike.

    Args:
      feed: the run's IndexFeed.
      step: steps done.
      save: saves this very step, for the refresher to work on.
      swap: takes a version if one is there.
      stopped: whether SIGTERM came.

    Returns:
      Whether SIGTERM came.
    """
    if not too_stale(self._refresh, step, feed.since):
      return False
    if step < self._look_again:
      return False
    began = time.monotonic()
    limit = self._refresh.max_staleness_steps
    said = False
    while too_stale(self._refresh, step, feed.since):
      if not processes.from_first(
        processes.is_first() and feed.refresher_works_on(step)
      ):
        processes.say(
          f'step {step}: no refresher is running, or it cannot make a version '
          f'of this step; goes on with an index of step {feed.since}, past '
          f'refresh.max_staleness_steps {limit}'
        )
        self._look_again = step + max(1, round(_LOOK_AGAIN * limit))
        return False
      if not said:
        processes.say(
          f'step {step}: waits for the refresher: the index is of step '
          f'{feed.since}, refresh.max_staleness_steps is {limit}'
        )
        save()
        said = True
      if stopped():
        return True
      processes.beat(f'step {step}, waiting for the refresher')
      time.sleep(self._refresh.poll_seconds)
      swap()
    processes.say(
      f'step {step}: the index is of step {feed.since} now, after '
      f'{time.monotonic() - began:.1f} s'
    )
    return False
