"""Config keys of the index refresh: where it runs, and when (paper 3.3).

`where`:
  separate    a job of its own (`realm refresh --follow`) beside the trainer;
  in_process  the trainer stops and embeds the corpus;
  rolling     the trainer embeds `rows_per_step` blocks in every step, round and
              round, so that no row is older than a round and a step;
  none        never.

`policy`, and what it means for each of the first two:
  async           separate: a version is taken as soon as it is there.
                  in_process: one is made every `every` steps.
  bounded         separate: as async, but the trainer waits where a step's index
                  would be more than `max_staleness_steps` old.
  schedule        steps between two versions by step range, `schedule`.
                  separate: none is taken earlier. in_process: one is made.
  adaptive        every `every` steps the index is compared with fresh
                  embeddings on the probe; below `min_overlap` a version is
                  asked of the refresher (separate) or made (in_process).
  simulate_delay  in_process: made as by async, used `delay_steps` later: what
                  a slower refresher would do to training, step by step the same
                  in every run.
"""

import dataclasses
from typing import Literal

_SEPARATE_ONLY = ('bounded',)
_IN_PROCESS_ONLY = ('simulate_delay',)


@dataclasses.dataclass(frozen=True)
class RefreshConfig:
  """How the index follows the model (refresh_config.py)."""

  where: Literal['separate', 'in_process', 'rolling', 'none'] = 'separate'
  policy: Literal[
    'async', 'bounded', 'schedule', 'adaptive', 'simulate_delay'
  ] = 'async'
  every: int = 500  # steps
  max_staleness_steps: int = 1000
  schedule: str = '0:500'  # FIRST_STEP:EVERY[,...]; EVERY 0: none
  min_overlap: float = 0.7  # a fraction of the rows retrieved
  delay_steps: int = 500
  # Swaps as a run's swaps.jsonl has them, instead of a refresher's.
  replay: str = ''
  # Rows that were embedded to train on go into the index within the step. What
  # this and the next do is in experiments/refresh_ablation.py.
  write_back: bool = False
  # So many rows, those retrieved most since they were made, are embedded anew
  # in every step; at least 2, a multiple of mesh.data.
  priority_rows: int = 0
  rows_per_step: int = 128  # of rolling; a multiple of mesh.data
  batch_size: int = 128  # blocks embedded at a time
  poll_seconds: float = 0.5  # between two looks at first, at last 30 s
  probe_queries: int = 64  # that each swap is measured on; 0: none

  def validate(self) -> None:
    for name, least in (
      ('every', 1),
      ('max_staleness_steps', 1),
      ('delay_steps', 1),
      ('priority_rows', 0),
      ('rows_per_step', 1),
      ('batch_size', 1),
      ('probe_queries', 0),
    ):
      if getattr(self, name) < least:
        raise ValueError(
          f'refresh.{name}: {getattr(self, name)}, must be at least {least}'
        )
    if self.poll_seconds <= 0:
      raise ValueError(
        f'refresh.poll_seconds: {self.poll_seconds}, must be positive'
      )
    if not 0 <= self.min_overlap <= 1:
      raise ValueError(
        f'refresh.min_overlap: {self.min_overlap}, must be a fraction in [0, 1]'
      )
    self.ranges()
    self._check_combination()

  def _check_combination(self) -> None:
    where, policy = self.where, self.policy
    if where in ('rolling', 'none') and policy != 'async':
      raise ValueError(
        f'refresh.policy: {policy} is about versions; there are none with '
        f'refresh.where {where}'
      )
    if where == 'in_process' and policy in _SEPARATE_ONLY:
      raise ValueError(
        f'refresh.policy: {policy} needs refresh.where separate; in_process '
        'no index is older than refresh.every'
      )
    if where == 'separate' and policy in _IN_PROCESS_ONLY:
      raise ValueError(
        f'refresh.policy: {policy} needs refresh.where in_process; when a '
        'separate refresher is done is left to chance'
      )
    if policy == 'adaptive' and not self.probe_queries:
      raise ValueError(
        'refresh.probe_queries: 0, but refresh.policy adaptive compares on them'
      )
    if self.replay and (where, policy) != ('separate', 'async'):
      raise ValueError(
        f'refresh.replay: stands for refresh.where separate with policy async, '
        f'not {where} with {policy}'
      )
    if self.priority_rows == 1:
      raise ValueError(
        'refresh.priority_rows: 1, but rows keep the mean of those written '
        'with them, so that one alone stays as it is; 0 or at least 2'
      )
    if self.priority_rows and self.write_back:
      raise ValueError(
        f'refresh.priority_rows: {self.priority_rows}, but refresh.write_back '
        'renews all that is retrieved'
      )

  def delay(self) -> int:
    """Steps between the making of a version and its use."""
    return self.delay_steps if self.policy == 'simulate_delay' else 0

  def changes_rows(self) -> bool:
    """Whether the step writes into the index, which is then saved with it."""
    return self.write_back or self.priority_rows > 0 or self.where == 'rolling'

  def index_copies(self) -> int:
    """Versions that the devices hold at a time: 2 where one is swapped in.

    Rolling swaps once, when all rows are replaced.
    """
    return 2 if self.where in ('separate', 'in_process') else 1

  def writes_level(self) -> bool:
    """Whether rows are written as of one age with the others (write.py).

    Rolling writes all rows in turn: there the index moves along.
    """
    return self.where != 'rolling'

  def ranges(self) -> list[tuple[int, int]]:
    """`schedule` as (first step, steps between two versions), ascending."""
    pairs = []
    for part in self.schedule.split(','):
      first, colon, every = part.strip().partition(':')
      if not (colon and first.isdecimal() and every.isdecimal()):
        raise ValueError(
          f'refresh.schedule: {part.strip()!r}, expected FIRST_STEP:EVERY'
        )
      pairs.append((int(first), int(every)))
    firsts = [first for first, _ in pairs]
    if firsts[0] != 0 or firsts != sorted(set(firsts)):
      raise ValueError(
        f'refresh.schedule: {self.schedule!r}, its ranges must start at step 0 '
        'and be in ascending order'
      )
    return pairs

  def range_of(self, step: int) -> tuple[int, int]:
    """The range of `schedule` that a step lies in."""
    return [pair for pair in self.ranges() if pair[0] <= step][-1]
