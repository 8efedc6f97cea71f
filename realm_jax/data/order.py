"""Which item stands where in which batch, and the random numbers of a batch.

Both are pure functions of (seed, step): a resumed run sees the batches that
it would have seen. The global batch does not depend on the number of
processes; each one makes its own slice.
"""

import numpy as np
from grain.experimental import index_shuffle

_SHUFFLE, _DRAW = 0, 1  # streams that never share a seed
_ROUNDS = 4  # of the shuffle's block cipher


class Order:
  """An endless walk over items, reshuffled each epoch, in O(1) memory.

  Epochs follow each other without a gap: a batch may hold the end of one and
  the start of the next, and each epoch visits each item exactly once.

  Attributes:
    local_size: examples of a batch that this process makes (B).
    steps_per_epoch: steps until each item was visited, rounded up.
  """

  def __init__(
    self,
    num_items: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Args as of the sources; batch_size is the global one.

    Raises:
      ValueError: the processes do not divide the batch.
    """
    if batch_size % process_count:
      raise ValueError(
        f'batch_size: {batch_size}, must be a multiple of the '
        f'{process_count} processes'
      )
    self._num_items = num_items
    self._batch_size = batch_size
    self._seed = seed
    self.local_size = batch_size // process_count
    self._first = process_index * self.local_size
    self.steps_per_epoch = -(-num_items // batch_size)

  def visit(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and item, both int64 [B], of each example of a step."""
    first = int(step) * self._batch_size + self._first
    epoch_B, place_B = np.divmod(
      np.arange(first, first + self.local_size), self._num_items
    )
    seeds = {
      epoch: shuffle_seed(self._seed, epoch)
      for epoch in np.unique(epoch_B).tolist()
    }
    item_B = [
      index_shuffle(place, self._num_items - 1, seeds[epoch], _ROUNDS)
      for epoch, place in zip(epoch_B.tolist(), place_B.tolist(), strict=True)
    ]
    return epoch_B, np.array(item_B, np.int64)

  def random(self, step: int, columns: int) -> np.ndarray:
    """Numbers in [0, 1), float64 [B, columns], this process's slice."""
    counters = -(-columns // 4)  # Philox makes four numbers a counter
    bits = np.random.Philox(
      np.random.SeedSequence((self._seed, int(step), _DRAW))
    )
    bits.advance(self._first * counters)
    draws = np.random.Generator(bits).random((self.local_size, 4 * counters))
    return draws[:, :columns]


def shuffle_seed(seed: int, epoch: int) -> int:
  """The 32-bit seed of an epoch's permutation."""
  sequence = np.random.SeedSequence((seed, epoch, _SHUFFLE))
  return int(sequence.generate_state(1)[0])


def rotate(place_B: np.ndarray, num_items: int, seed: int) -> np.ndarray:
  """Items at the places of one fixed permutation, walked round and round."""
  fixed = shuffle_seed(seed, 0)
  return np.array(
    [
      index_shuffle(place % num_items, num_items - 1, fixed, _ROUNDS)
      for place in place_B.tolist()
    ],
    np.int64,
  )
