"""How many steps old the index is that a training step uses."""

from typing import Any

import numpy as np

from realm_jax.refresh_config import RefreshConfig
from realm_jax.train.renew import rounds


class Staleness:
  """Steps between the embedder of the (oldest) rows and the step in hand.

  Args:
    refresh: where and how the index is refreshed.
    num_rows: of the index.
    frozen: the document embedder does not train: no index is ever stale.
  """

  def __init__(self, refresh: RefreshConfig, num_rows: int, frozen: bool):
    self._frozen = frozen
    self._rolling = refresh.where == 'rolling'
    # A step searches before it renews: what is next was made a whole round ago,
    # with the parameters that its step began with.
    self._oldest = rounds(num_rows, refresh.rows_per_step) + 1
    self._window: list[int] = []  # of the steps since the last metrics

  def step_done(self, step: int, since: int) -> None:
    """Counts a step, whose index was made of the parameters of `since`."""
    self._window.append(self._age(step, since))

  def metrics(self, step: int, since: int, window: bool) -> dict[str, Any]:
    """What the index of a step is of, and how old.

    Args:
      step: the step.
      since: the step whose parameters made the index.
      window: with the median and the 95th percentile over the steps counted
        since the last call with it.
    """
    age = self._age(step, since)
    values: dict[str, Any] = {
      'index_step': step - age if self._rolling else since,
      'staleness_steps': age,
    }
    if window and self._window:
      p50, p95 = np.percentile(self._window, [50, 95], method='higher')
      values |= {'staleness_p50': int(p50), 'staleness_p95': int(p95)}
      self._window = []
    return values

  def _age(self, step: int, since: int) -> int:
    if self._frozen:
      return 0
    age = step - since
    return min(age, self._oldest) if self._rolling else age
