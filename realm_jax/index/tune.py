"""Options of an approximate index, chosen by measurement."""

from collections.abc import Callable

from realm_jax.config import Config

# From one number of leaves to the next that is tried.
_LEAVES_STEP = 1.5
_REORDER = (16, 32, 64, 128, 256)


def choose(
  measure: Callable[[int, int], float],
  config: Config,
  target: float,
  most: int,
  before: dict[str, int],
) -> tuple[int, int]:
  """The least leaves, then the fewest rescored rows, that are good enough.

  Other options are another program: those of the version before stay as long
  as they are good enough and half their leaves are not.

  Args:
    measure: recall with so many leaves and so many rescored.
    config: what it gives stays.
    target: the recall that is good enough.
    most: leaves there are.
    before: options of the version before, or none.

  Returns:
    Leaves and rescored rows; all leaves, where the target is out of reach.
  """
  options = config.index
  given = options.num_leaves_to_search, options.reordering_num_neighbors
  if all(given):
    return given
  if before:
    kept = (
      given[0] or min(before['num_leaves_to_search'], most),
      given[1] or before['reordering_num_neighbors'],
    )
    half = kept[0] // 2, kept[1]
    if measure(*kept) >= target and (
      given[0] or not half[0] or measure(*half) < target
    ):
      return kept
  leaves, reorder = given[0] or 1, given[1] or _REORDER[-1]
  recall = measure(leaves, reorder)
  while recall < target and leaves < most and not given[0]:
    leaves = min(max(leaves + 1, int(leaves * _LEAVES_STEP)), most)
    recall = measure(leaves, reorder)
  for fewer in () if given[1] else _REORDER[:-1]:
    if measure(leaves, fewer) >= min(target, recall):
      return leaves, fewer
  return leaves, reorder
