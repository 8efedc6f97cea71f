"""Config keys of the index over the corpus Z.

`kind`:
  exact       every row is scored, on the devices;
  scann       a tree of 8-bit codes on the devices; its finds are scored again;
  scann_host  the `scann` library in the memory of the hosts: candidates of the
              next batch are found while the devices run the current step, with
              the query encoder of the step before.

The options of both ScaNN kinds have the names that the library gives them, for
each of `num_shards` parts of the corpus. Two of them are measured rather than
given where they are 0: `num_leaves_to_search` and `reordering_num_neighbors`
are then about the least with which a build finds `target_recall` (`min_recall`
if that is more) of what exact search finds; those of the version before stay
while half its leaves find less. The version's manifest says what was chosen.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class IndexConfig:
  """What is searched, how, and how well (index_config.py)."""

  kind: Literal['exact', 'scann', 'scann_host'] = 'exact'
  rows_dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  # Token ids of all blocks: in the memory of the devices, or of their hosts.
  token_table: Literal['device', 'host'] = 'device'
  keep: int = 3  # versions kept on disk
  min_recall: float = 0.0  # a build below this recall@k is refused
  search_block: int = 4096  # rows scored at a time on a device
  max_excluded: int = 8  # rows a query may exclude (trivial retrieval)

  # Of the ScaNN kinds.
  # Parts of the corpus that are built and searched apart, so that what is
  # found depends on no number of devices or processes. Of scann a multiple of
  # the devices.
  num_shards: int = 8
  num_leaves: int = 0  # of a shard; 0: by its rows
  num_leaves_to_search: int = 0  # of a shard; 0: as target_recall needs
  reordering_num_neighbors: int = 0  # of a shard; 0: as target_recall needs
  target_recall: float = 0.95  # recall@8
  # Quantization errors count where the inner product is at least this share
  # of the row's norm.
  anisotropic_quantization_threshold: float = 0.2
  soar_lambda: float = 0.0  # rows in a second leaf too, as in SOAR; 0: not
  # Of scann_host.
  dimensions_per_block: int = 2  # that one 4-bit code stands for

  def validate(self) -> None:
    for name in (
      'keep',
      'search_block',
      'max_excluded',
      'num_shards',
      'dimensions_per_block',
    ):
      self._check(name, getattr(self, name) >= 1, 'at least 1')
    for name in (
      'num_leaves',
      'num_leaves_to_search',
      'reordering_num_neighbors',
      'soar_lambda',
    ):
      self._check(name, getattr(self, name) >= 0, 'at least 0')
    for name in ('min_recall', 'target_recall'):
      fraction = 0 <= getattr(self, name) <= 1
      self._check(name, fraction, 'a fraction in [0, 1]')
    name = 'anisotropic_quantization_threshold'
    self._check(name, 0 <= getattr(self, name) < 1, 'in [0, 1)')
    # Of scann they are the tiles that a leaf is cut into.
    most = self.num_leaves if self.kind == 'scann_host' else 0
    if most and self.num_leaves_to_search > most:
      raise ValueError(
        f'index.num_leaves_to_search: {self.num_leaves_to_search}, is more '
        f'than index.num_leaves {self.num_leaves}'
      )

  def _check(self, name: str, right: bool, what: str) -> None:
    if not right:
      raise ValueError(f'index.{name}: {getattr(self, name)}, must be {what}')
