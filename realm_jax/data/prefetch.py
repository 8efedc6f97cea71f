"""Batches made ahead of the step that needs them."""

from collections.abc import Iterator
from typing import Any

import grain
import numpy as np


def prefetch(
  source: Any, first_step: int, depth: int
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of first_step, first_step + 1, ... without end.

  Threads make up to `depth` batches ahead; what they give does not depend on
  their timing, as a source is a pure function of the step. An error in a
  source is raised by the `next` that would have returned its batch.

  Args:
    source: `source[step]` is a batch.
    first_step: the first one wanted.
    depth: batches made ahead, at least 1.
  """
  steps = grain.MapDataset.source(_Steps(source, first_step))
  return iter(
    steps.to_iter_dataset(
      grain.ReadOptions(num_threads=min(depth, 4), prefetch_buffer_size=depth)
    )
  )


class _Steps:
  """A source as grain reads one: with a length, from the first step."""

  def __init__(self, source: Any, first_step: int):
    self._source = source
    self._first_step = first_step

  def __len__(self) -> int:
    return 2**31 - 1 - self._first_step  # steps are int32 in a checkpoint

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return self._source[self._first_step + int(index)]
