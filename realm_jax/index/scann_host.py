"""The `scann` library as an index in the memory of the hosts.

Every process holds searchers of whole shards and is asked about all queries;
what the processes find is merged by whoever asked. Sun et al. 2023 describe
the library's tree and SOAR, Guo et al. 2020 its codes.
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
import tempfile
from typing import Any

import numpy as np
from etils import epath

from realm_jax.config import Config
from realm_jax.index import shards
from realm_jax.parallel import processes
from realm_jax.workdir import part_files, versions

# With fewer rows the library cannot learn its codes; scoring all is as fast.
_CODED_ROWS = 2048
_TRAINING_ROWS = 250_000
_ROW_FILE = 'row.npy'
QUERIES = 32  # that a thread takes at a time


@dataclasses.dataclass(frozen=True)
class Searcher:
  """One shard.

  Attributes:
    library: scann's searcher.
    row_n: the corpus row of each of its points, ascending.
    dim: of the points.
  """

  library: Any
  row_n: np.ndarray
  dim: int

  def rows(self, place_BK: np.ndarray) -> np.ndarray:
    """The corpus rows of points, int32."""
    if self._first is None:
      return self.row_n[place_BK]
    return place_BK.astype(np.int32) + self._first

  @functools.cached_property
  def _first(self) -> np.int32 | None:
    """The first row where none is missing after it.

    A table is slow to look up: the search has just put it out of the cache.
    """
    first, last = self.row_n[[0, -1]]
    return first if last - first + 1 == len(self.row_n) else None


@dataclasses.dataclass(frozen=True)
class Searchers:
  """Some shards of a version, in this process's memory.

  Attributes:
    by_shard: searchers; a shard without living rows has none.
    leaves: that a query visits in each (num_leaves_to_search).
    reorder: candidates that each scores exactly (reordering_num_neighbors).
  """

  by_shard: dict[int, Searcher]
  leaves: int
  reorder: int

  def search(
    self, query_BE: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The k best of these shards' rows; as search.search, in numpy.

    Raises:
      ValueError: k below 1, no query, a query that is not finite, or another E
        than the index has; names them.
    """
    if k < 1:
      raise ValueError(f'search: k is {k}, must be at least 1')
    if not len(query_BE):
      raise ValueError('search: 0 queries; there must be some')
    query_BE = np.ascontiguousarray(query_BE, np.float32)
    for searcher in self.by_shard.values():
      if query_BE.shape[1] != searcher.dim:
        raise ValueError(
          f'search: queries have {query_BE.shape[1]} dimensions, the index has '
          f'{searcher.dim}'
        )
    if not np.isfinite(query_BE).all():
      wrong_b = np.flatnonzero(~np.isfinite(query_BE).all(1))
      raise ValueError(
        f'search: {len(wrong_b)} of {len(query_BE)} queries are not finite, '
        f'the first is number {wrong_b[0]}'
      )
    found = [
      _search(searcher, query_BE, k, self.leaves, self.reorder)
      for searcher in self.by_shard.values()
    ]
    if len(found) == 1 and found[0][0].shape[1] == k:
      return found[0]  # best first already
    none = (
      np.zeros((len(query_BE), 0), np.float32),
      np.zeros((len(query_BE), 0), np.int32),
    )
    return shards.best([none, *found], k)


def build(
  rows_nE: np.ndarray, row_n: np.ndarray, config: Config, threads: int
) -> Searcher | None:
  """A searcher of one shard.

  Args:
    rows_nE: those that may be found.
    row_n: their numbers in the corpus.
    config: of the run.
    threads: to build with.

  Returns:
    The searcher; None: there are no rows.
  """
  if not len(rows_nE):
    return None
  options = config.index
  rows_nE = np.ascontiguousarray(rows_nE, np.float32)
  dim = rows_nE.shape[1]
  builder = library().builder(rows_nE, 8, 'dot_product')
  builder.set_n_training_threads(threads)
  if len(rows_nE) < _CODED_ROWS:
    return Searcher(builder.score_brute_force().build(), row_n, dim)
  leaves = num_leaves(config, len(rows_nE))
  # The library takes the least inner product that matters, not a share.
  norm = float(np.linalg.norm(rows_nE, axis=1).mean())
  tree = builder.tree(
    leaves,
    leaves,
    training_sample_size=_TRAINING_ROWS,
    min_partition_size=1,
    # Centers of one length: the center between two clusters is not too short
    # to be visited. Rows are of about one length too (a layer norm).
    spherical=True,
    soar_lambda=options.soar_lambda or None,
    overretrieve_factor=2.0 if options.soar_lambda else None,
  )
  coded = tree.score_ah(
    min(options.dimensions_per_block, dim),
    anisotropic_quantization_threshold=(
      options.anisotropic_quantization_threshold * norm or math.nan
    ),
    training_sample_size=_TRAINING_ROWS,
  )
  return Searcher(coded.reorder(100).build(), row_n, dim)


def library() -> Any:
  """The `scann` package, which there is for Linux alone.

  Raises:
    ValueError: it is not installed.
  """
  try:
    from scann.scann_ops.py import scann_ops_pybind
  except ImportError as error:
    raise ValueError(
      f'index.kind: scann_host needs the package scann: {error}'
    ) from error
  return scann_ops_pybind


def num_leaves(config: Config, rows: int) -> int:
  """Leaves of a shard."""
  return min(config.index.num_leaves or 3 * math.isqrt(rows) // 2, rows)


def save(
  path: epath.PathLike, shard: int, searcher: Searcher
) -> dict[str, int]:
  """Writes a searcher into a version; gives its files and their checksums."""
  name = f'scann/{shard}'
  with tempfile.TemporaryDirectory() as folder:
    searcher.library.serialize(folder, relative_path=True)
    np.save(os.path.join(folder, _ROW_FILE), searcher.row_n)
    return part_files.write_directory(path, name, folder)


def load(
  index: epath.PathLike,
  manifest: versions.Manifest,
  wanted: range,
  leaves: int,
  reorder: int,
) -> Searchers:
  """Reads searchers of a committed version, several at a time.

  Args:
    index: Workdir.index.
    manifest: of the version.
    wanted: shards.
    leaves: as in Searchers.
    reorder: as in Searchers.

  Raises:
    ValueError: a file is damaged; names it.
  """
  there = [s for s in wanted if f'scann/{s}/{_ROW_FILE}' in manifest.files]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = pool.map(lambda shard: _load(index, manifest, shard), there)
    by_shard = dict(zip(there, found, strict=True))
  return Searchers(by_shard, leaves, reorder)


def _load(
  index: epath.PathLike, manifest: versions.Manifest, shard: int
) -> Searcher:
  name = f'scann/{shard}'
  with tempfile.TemporaryDirectory() as folder:
    part_files.read_directory(index, manifest, name, folder)
    try:
      found = library().load_searcher(folder, False)
    except (RuntimeError, ValueError) as error:
      path = versions.directory(index, manifest.version) / name
      raise ValueError(f'{path}: scann cannot load it: {error}') from error
    row_n = np.load(os.path.join(folder, _ROW_FILE))
  return Searcher(found, row_n, manifest.dim)


def _search(
  searcher: Searcher, query_BE: np.ndarray, k: int, leaves: int, reorder: int
) -> tuple[np.ndarray, np.ndarray]:
  k = min(k, len(searcher.row_n))
  while True:
    place_BK, score_BK = searcher.library.search_batched_parallel(
      query_BE,
      final_num_neighbors=k,
      pre_reorder_num_neighbors=max(reorder, k),
      leaves_to_search=leaves,  # the library takes all for more
      batch_size=min(QUERIES, -(-len(query_BE) // threads())),
    )
    missing_BK = np.isnan(score_BK)
    if leaves >= len(searcher.row_n) or not missing_BK.any():
      break
    leaves *= 2  # a long result needs enough leaves to be filled from
  place_BK[missing_BK] = 0
  row_BK = searcher.rows(place_BK)
  row_BK[missing_BK], score_BK[missing_BK] = -1, -np.inf
  return score_BK, row_BK


@dataclasses.dataclass(frozen=True)
class HostIndex:
  """An index whose rows stay with the hosts.

  Attributes:
    device: the Index without rows: what a step takes.
    searchers: of this process's shards.
    rows_NE: all rows, where their embeddings are wanted beside their numbers
      (fine-tuning); else None.
    alive_N: rows that may be found; None: all that the searchers have.
  """

  device: Any
  searchers: Searchers
  rows_NE: np.ndarray | None = None
  alive_N: np.ndarray | None = None

  def search(
    self,
    query_BE: np.ndarray,
    k: int,
    exclude_BX: np.ndarray | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of all processes, which ask together; as search.search.

    Not inside jit: it runs on the hosts.
    """
    if exclude_BX is not None:
      score_BK, row_BK = self.search(query_BE, k + exclude_BX.shape[1])
      hit_BK = (row_BK[:, :, None] == exclude_BX[:, None, :]).any(2)
      return shards.best([(np.where(hit_BK, -np.inf, score_BK), row_BK)], k)
    longer = k
    while True:
      score_BK, row_BK = self.searchers.search(query_BE, longer)
      if self.alive_N is None:
        break
      full_B = (row_BK >= 0).all(1)
      gone_BK = (row_BK >= 0) & ~self.alive_N[row_BK]
      score_BK = np.where(gone_BK, -np.inf, score_BK)
      row_BK = np.where(gone_BK, -1, row_BK)
      short_B = full_B & ((row_BK >= 0).sum(1) < k)
      if not any(processes.gather(bool(short_B.any()))):
        break
      longer *= 2
    everyone = processes.gather([shards.finite(score_BK), row_BK.tolist()])
    return shards.best([tuple(map(np.array, x)) for x in everyone], k)

  def rows(self, row_BK: np.ndarray) -> np.ndarray:
    """Embeddings of rows as float32; -1 gives zeros."""
    assert self.rows_NE is not None
    row_BKE = self.rows_NE[np.maximum(row_BK, 0)].astype(np.float32)
    row_BKE[row_BK < 0] = 0
    return row_BKE


@functools.cache
def threads() -> int:
  """Of this process's machine."""
  return os.cpu_count() or 1
