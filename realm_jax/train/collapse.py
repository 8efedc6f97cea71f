"""An alarm for retrieval that has stopped to retrieve."""

import collections
from collections.abc import Mapping
from typing import Any

from realm_jax.parallel import processes

# Logged steps whose mean counts: one batch may be odd.
_WINDOW = 10
# One block among the candidates of most queries: retrieval that looks at the
# query finds another one for each. Of fewer rows than so many times K, chance
# alone may do that.
_SHARE = 0.5
_ROWS_PER_CANDIDATE = 20
# The null document takes (nearly) all: no passage is read any more, none gets a
# gradient. The paper's runs are between 0.1 and 0.7.
_NULL = 0.95
# Nats. One candidate takes all for all queries, right or wrong: scores have run
# away (a temperature too low does it), and no other candidate gets a gradient.
_ENTROPY = 0.01


class CollapseAlarm:
  """Looks at the metrics of the logged steps.

  Args:
    num_rows: N.
    k: rows that a step retrieves for a query.
  """

  def __init__(self, num_rows: int, k: int):
    self._many = num_rows >= _ROWS_PER_CANDIDATE * k
    self._seen: collections.deque[Mapping[str, float]] = collections.deque(
      maxlen=_WINDOW
    )
    self._rings = False

  def update(self, step: int, values: Mapping[str, Any]) -> dict[str, int]:
    """Takes a logged step's metrics; says it on standard error when it rings.

    Returns:
      retrieval_collapse: 1 where the mean of the last ten logged steps is past
      a threshold, else 0.
    """
    self._seen.append(values)
    why = self._why() if len(self._seen) == _WINDOW else []
    if why and not self._rings:
      processes.say(
        f'step {step}: retrieval has collapsed: {"; ".join(why)} (mean of the '
        f'last {_WINDOW} logged steps)'
      )
    self._rings = bool(why)
    return {'retrieval_collapse': int(self._rings)}

  def _why(self) -> list[str]:
    def mean(name: str) -> float:
      return sum(float(values[name]) for values in self._seen) / _WINDOW

    share = mean('most_retrieved_share')
    null, entropy = mean('null_probability'), mean('retrieval_entropy')
    why = []
    if self._many and share > _SHARE:
      why.append(f'one block is retrieved for {share:.0%} of the queries')
    if null > _NULL:
      why.append(f'the null document has probability {null:.3f}')
    if entropy < _ENTROPY:
      why.append(f'the entropy of p(z|x) is {entropy:.4f} nats')
    return why
