"""What mips.py compares: each kind built, with the searches to time.

A kind is a function of the rows [N, E] float32 and of flags that yields
`Point`s: settings from fast to thorough, each with a search. What a kind builds
more than once (FAISS, another number of lists) it builds between its points.
"""

import argparse
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax import config as config_lib
from realm_jax.config import Config, MeshConfig
from realm_jax.index import scann, scann_build, scann_host, shards
from realm_jax.index.search import Index
from realm_jax.index.search import search as search_index
from realm_jax.parallel import mesh as mesh_lib

_LEAVES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_REORDER = (16, 32, 48, 64, 96, 128)
_COMPILED_LEAVES = (1, 2, 4, 8, 16, 32)  # each is a program of its own
_COMPILED_REORDER = (16, 64)


class Point(NamedTuple):
  """One setting of one kind.

  Attributes:
    options: what was set.
    search: queries [B, E] to rows [B, k].
    build_seconds: of what it searches.
    size: bytes of what it searches, rows included where they are rescored.
    temporaries: bytes that XLA's program for some queries needs beside these;
      None: it is not XLA's.
  """

  options: dict[str, Any]
  search: Callable[[np.ndarray], np.ndarray]
  build_seconds: float
  size: int
  temporaries: Callable[[np.ndarray], int] | None = None


def exact(rows_NE: np.ndarray, flags: argparse.Namespace) -> Iterator[Point]:
  for dtype in flags.rows_dtypes.split(','):
    began = time.perf_counter()
    index = _put(rows_NE, dtype, None)
    seconds = time.perf_counter() - began
    yield Point(
      {'rows_dtype': dtype},
      _device_search(index, flags.k),
      seconds,
      index.rows_NE.nbytes,
      _temporaries(index, flags.k),
    )


def scann_devices(
  rows_NE: np.ndarray, flags: argparse.Namespace
) -> Iterator[Point]:
  config, num_shards = _config(flags), flags.num_shards
  size = shards.size(len(rows_NE), num_shards)
  leaves = config.index.num_leaves or -(-size // scann_build.TILE)
  began = time.perf_counter()
  built = []
  for shard in range(num_shards):
    start, stop = shards.bounds(shard, len(rows_NE), num_shards)
    rows_1nE = np.zeros((1, size, rows_NE.shape[1]), np.float32)
    rows_1nE[0, : stop - start] = rows_NE[start:stop]
    built += scann_build.build_parts(
      rows_1nE,
      np.arange(size)[None] < stop - start,
      np.array([shard], np.int32),
      _mesh(),
      num_leaves=min(leaves, size),
      threshold=config.index.anisotropic_quantization_threshold,
    )
  arrays = {
    name: jnp.asarray(np.stack([part[name] for part in built]))
    for name in built[0]
  }
  index = _put(rows_NE, 'float32', num_shards * size)
  seconds = time.perf_counter() - began
  bytes_ = index.rows_NE.nbytes + sum(x.nbytes for x in arrays.values())
  for searched in _COMPILED_LEAVES:
    for reorder in _COMPILED_REORDER:
      if searched > leaves:
        continue
      tree = scann.Tree(**arrays, leaves=searched, reorder=reorder)
      options = {
        'num_leaves': leaves,
        'num_leaves_to_search': searched,
        'reordering_num_neighbors': reorder,
      }
      whole = dataclasses.replace(index, tree=tree), flags.k
      search, extra = _device_search(*whole), _temporaries(*whole)
      yield Point(options, search, seconds, bytes_, extra)


def scann_hosts(
  rows_NE: np.ndarray, flags: argparse.Namespace
) -> Iterator[Point]:
  for leaves in _lists(shards.size(len(rows_NE), flags.num_shards), flags):
    by_shard, seconds, size = _searchers(
      rows_NE, leaves, flags.num_shards, flags
    )
    for searched, reorder in itertools.product(_LEAVES, _REORDER):
      searchers = scann_host.Searchers(by_shard, searched, reorder)
      options = {
        'num_leaves': leaves,
        'num_leaves_to_search': searched,
        'reordering_num_neighbors': reorder,
      }
      yield Point(
        options,
        lambda query_BE, found=searchers: found.search(query_BE, flags.k)[1],
        seconds,
        size,
      )


def scann_library(
  rows_NE: np.ndarray, flags: argparse.Namespace
) -> Iterator[Point]:
  """The searcher of `scann_host`, of one shard, called without it."""
  for leaves in _lists(len(rows_NE), flags):
    by_shard, seconds, size = _searchers(rows_NE, leaves, 1, flags)
    for searched, reorder in itertools.product(_LEAVES, _REORDER):
      options = {
        'final_num_neighbors': flags.k,
        'leaves_to_search': searched,
        'pre_reorder_num_neighbors': reorder,
        'batch_size': scann_host.QUERIES,
      }

      def search(
        query_BE: np.ndarray,
        library: Any = by_shard[0].library,
        options: dict[str, int] = options,
      ) -> np.ndarray:
        found, _ = library.search_batched_parallel(query_BE, **options)
        return found.astype(np.int64)

      yield Point({'num_leaves': leaves, **options}, search, seconds, size)


_built: dict[tuple[int, int], Any] = {}


def _searchers(
  rows_NE: np.ndarray, leaves: int, num_shards: int, flags: argparse.Namespace
) -> tuple[dict[int, scann_host.Searcher], float, int]:
  """Searchers by shard, seconds of building and bytes; made once.

  No two trees that the library learns with several threads are the same.
  """
  if (num_shards, leaves) in _built:
    return _built[num_shards, leaves]
  config = _config(flags, num_leaves=leaves)
  began = time.perf_counter()
  by_shard, size = {}, 0
  with tempfile.TemporaryDirectory() as folder:
    for shard in range(num_shards):
      start, stop = shards.bounds(shard, len(rows_NE), num_shards)
      searcher = scann_host.build(
        rows_NE[start:stop],
        np.arange(start, stop, dtype=np.int32),
        config,
        flags.threads,
      )
      assert searcher is not None
      by_shard[shard] = searcher
      searcher.library.serialize(folder, relative_path=True)
      size += _files_size(folder)
  _built[num_shards, leaves] = by_shard, time.perf_counter() - began, size
  return _built[num_shards, leaves]


def faiss_flat(
  rows_NE: np.ndarray, flags: argparse.Namespace
) -> Iterator[Point]:
  import faiss

  faiss.omp_set_num_threads(flags.threads)
  began = time.perf_counter()
  index = faiss.IndexFlatIP(rows_NE.shape[1])
  index.add(rows_NE)
  seconds = time.perf_counter() - began
  yield Point(
    {},
    lambda query_BE: index.search(query_BE, flags.k)[1],
    seconds,
    rows_NE.nbytes,
  )


def faiss_ivfpq(
  rows_NE: np.ndarray, flags: argparse.Namespace
) -> Iterator[Point]:
  """Lists of 4-bit product codes, two dimensions a code, and rescoring."""
  import faiss

  faiss.omp_set_num_threads(flags.threads)
  n, dim = rows_NE.shape
  for lists in _lists(n, flags):
    began = time.perf_counter()
    codes = faiss.index_factory(
      dim, f'IVF{lists},PQ{dim // 2}x4fs', faiss.METRIC_INNER_PRODUCT
    )
    # Not FAISS's default for inner products; it finds more of clustered rows.
    codes.by_residual = True
    codes.train(rows_NE[:: max(n // 250_000, 1)])
    index = faiss.IndexRefineFlat(codes)
    index.add(rows_NE)
    seconds = time.perf_counter() - began
    size = rows_NE.nbytes + n * (dim // 4 + 8) + lists * dim * 4
    for probe in _LEAVES:
      for factor in (2, 4, 6, 8, 12, 16):
        options = {'nlist': lists, 'nprobe': probe, 'k_factor': factor}

        def search(
          query_BE: np.ndarray,
          index: Any = index,
          codes: Any = codes,
          probe: int = probe,
          factor: int = factor,
        ) -> np.ndarray:
          codes.nprobe, index.k_factor = probe, factor
          return index.search(query_BE, flags.k)[1]

        yield Point(options, search, seconds, size)


KINDS = {
  'exact': exact,
  'scann': scann_devices,
  'scann_host': scann_hosts,
  'scann_library': scann_library,
  'faiss_flat': faiss_flat,
  'faiss_ivfpq': faiss_ivfpq,
}


def _lists(n: int, flags: argparse.Namespace) -> tuple[int, ...]:
  """Leaves, or lists: about sqrt(n), and twice that."""
  if flags.leaves:
    return tuple(map(int, flags.leaves.split(',')))
  near = 2 ** round(np.log2(np.sqrt(n)))
  return near, 2 * near


def _files_size(folder: str) -> int:
  return sum(file.stat().st_size for file in Path(folder).iterdir())


def _config(flags: argparse.Namespace, **index: Any) -> Config:
  index['num_shards'] = flags.num_shards
  return config_lib.from_dict({'index': index})


def _mesh() -> jax.sharding.Mesh:
  return mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])


def _put(rows_NE: np.ndarray, dtype: str, total: int | None) -> Index:
  n, mesh = len(rows_NE), _mesh()

  def put(read: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return mesh_lib.put_rows(read, n, shape, dtype, mesh, total)

  return Index(
    put(
      lambda start, stop: rows_NE[start:stop],
      (rows_NE.shape[1],),
      jnp.dtype(dtype),
    ),
    put(lambda start, stop: np.ones(stop - start, bool), (), np.bool_),
    put(lambda start, stop: np.zeros((stop - start, 1)), (1,), np.uint16),
  )


def _device_search(index: Index, k: int) -> Callable[[np.ndarray], np.ndarray]:
  def run(query_BE: np.ndarray) -> np.ndarray:
    with jax.set_mesh(_mesh()):
      return np.asarray(_search(index, query_BE, k)[1])

  return run


def _temporaries(index: Index, k: int) -> Callable[[np.ndarray], int]:
  def measure(query_BE: np.ndarray) -> int:
    with jax.set_mesh(_mesh()):
      compiled = _search.lower(index, query_BE, k).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  return measure


_search = jax.jit(search_index, static_argnums=2)
