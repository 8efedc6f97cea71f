"""Accelerators that a plan can be made for, by the names users know them by.

Peaks are the vendors' own, dense, of bfloat16. A TPU v4 chip is two devices, as
ahead-of-time topologies have it (a runtime may show one with both halves).
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """What one chip has."""

  flops: float  # a second, bfloat16
  memory: int  # bytes
  devices: int = 1  # that JAX sees


_ACCELERATORS = {
  'v4': Accelerator(275e12, 32 * 2**30, devices=2),
  'v5e': Accelerator(197e12, 16 * 2**30),
  'v5p': Accelerator(459e12, 95 * 2**30),
  'v6e': Accelerator(918e12, 32 * 2**30),
  'gpu:a100': Accelerator(312e12, 80 * 2**30),
  'gpu:h100': Accelerator(989e12, 80 * 2**30),
  'gpu:h200': Accelerator(989e12, 141 * 2**30),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of TPUs or a number of GPUs.

  Attributes:
    text: as it was given.
    name: of the accelerator.
    layout: `4x4x4`, of a TPU slice; of GPUs their number.
    slices: joined by the data centre's network.
  """

  text: str
  name: str
  layout: str
  slices: int
  accelerator: Accelerator

  @property
  def chips(self) -> int:
    return math.prod(map(int, self.layout.split('x'))) * self.slices

  @property
  def devices(self) -> int:
    return self.chips * self.accelerator.devices

  @property
  def is_tpu(self) -> bool:
    return not self.name.startswith('gpu')

  @property
  def device_memory(self) -> int:
    return self.accelerator.memory // self.accelerator.devices

  @property
  def flops(self) -> float:
    """Of all chips together, a second."""
    return self.chips * self.accelerator.flops


def parse_topology(text: str, flag: str = '--topology') -> Topology:
  """Reads `v4:4x4x4`, `v5e:16x16:2` (two slices) or `gpu:h100:8`.

  Args:
    text: the topology.
    flag: that it came with, for messages.

  Raises:
    ValueError: no such accelerator, or no such layout.
  """
  parts = text.split(':')
  name = ':'.join(parts[:2]) if parts[0] == 'gpu' else parts[0]
  rest = parts[len(name.split(':')) :]
  if name not in _ACCELERATORS:
    raise ValueError(
      f'{flag} {text}: no such accelerator; has {", ".join(_ACCELERATORS)}'
    )
  sizes = rest[0].split('x') if rest else []
  right = sizes and all(map(_is_count, sizes))
  slices = rest[1] if len(rest) > 1 else '1'
  if name.startswith('gpu'):
    right = right and len(sizes) == 1 and len(rest) == 1
  elif not _is_count(slices) or len(rest) > 2:
    right = False
  if not right:
    raise ValueError(
      f'{flag} {text}: expected v4:4x4x4, v5e:16x16, v5e:16x16:2 (two slices) '
      'or gpu:h100:8'
    )
  return Topology(text, name, rest[0], int(slices), _ACCELERATORS[name])


def _is_count(text: str) -> bool:
  return text.isascii() and text.isdigit() and int(text) > 0
