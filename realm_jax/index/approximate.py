"""What a ScaNN kind adds to the rows of a version: built, measured, read.

Each process builds the shards it owns; nothing of them is visible before the
manifest is. Recall is measured on the probe of the build, against exact search
of rows that were not rounded, and with it the options that the config leaves
open are chosen: what is recorded is the very recall that was looked at, and a
little too good.
"""

import functools
import io
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from realm_jax.config import Config
from realm_jax.index import scann, scann_build, scann_host, shards
from realm_jax.index.recall import recall_of
from realm_jax.index.tune import choose
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.workdir import part_files, versions
from realm_jax.workdir.rows import PartFiles

# Trees and searchers of some shards.
Parts = dict[int, scann_build.Part] | scann_host.Searchers
_T = TypeVar('_T')


class NotWritten(OSError):
  """A process could not write its files; raised in all of them."""


class Built(NamedTuple):
  """The files of a version, and what the probe's queries find with them."""

  parts: PartFiles
  row_BK: np.ndarray


def build(
  path: epath.Path,
  config: Config,
  mesh: jax.sharding.Mesh,
  num_rows: int,
  read: Callable[[int, int], np.ndarray],
  alive: Callable[[int, int], np.ndarray],
  query_BE: np.ndarray,
  exact_BK: np.ndarray,
  rounded_BK: np.ndarray,
  before: dict[str, int],
) -> Built:
  """Builds this process's shards; all processes together measure them.

  Args:
    path: directory of the version.
    config: of the run.
    mesh: of this process's devices.
    num_rows: N.
    read: rows of the version.
    alive: which of them may be found.
    query_BE: of the probe.
    exact_BK: what exact search finds for them before rows are rounded,
    rounded_BK: and in the rows of the version: no options find more.
    before: options of the version before, kept as long as they do: others
      would compile the step again.

  Returns:
    The same in all processes.

  Raises:
    NotWritten: a process could not write its files; in all of them.
  """
  count = config.index.num_shards
  own = shards.owned(count)

  def load(shard: int) -> tuple[np.ndarray, np.ndarray]:
    processes.beat(f'index shard {shard}')
    start, stop = shards.bounds(shard, num_rows, count)
    return read(start, stop), alive(start, stop)

  k = exact_BK.shape[1]
  rows = shards.size(num_rows, count)
  if config.index.kind == 'scann':
    leaves = scann_build.leaves_of(config, rows)
    copies = scann_build.copies(leaves, config.index.soar_lambda)
    most = scann_build.num_tiles(rows, leaves, config.index.soar_lambda)
    trees, files = _together(
      lambda: _build_trees(path, config, mesh, num_rows, own, load, leaves)
    )

    def search(leaves: int, reorder: int) -> tuple[np.ndarray, np.ndarray]:
      return _search_trees(
        trees, read, num_rows, count, query_BE, k, leaves, reorder, copies
      )
  else:
    most = leaves = scann_host.num_leaves(config, rows)
    by_shard, files = _together(
      lambda: _build_searchers(path, config, num_rows, own, load)
    )

    def search(leaves: int, reorder: int) -> tuple[np.ndarray, np.ndarray]:
      searchers = scann_host.Searchers(by_shard, leaves, reorder)
      return searchers.search(query_BE, k)

  def find(leaves: int, reorder: int) -> np.ndarray:
    processes.beat(f'recall with {leaves} leaves, {reorder} reordered')
    score_BK, row_BK = search(leaves, reorder)
    everyone = processes.gather([shards.finite(score_BK), row_BK.tolist()])
    return shards.best([tuple(map(np.array, x)) for x in everyone], k)[1]

  wanted = max(config.index.target_recall, config.index.min_recall)
  searched, reorder = choose(
    lambda *options: recall_of(find(*options), exact_BK),
    config,
    min(wanted, recall_of(rounded_BK, exact_BK)),
    most,
    before,
  )
  options = {
    'num_shards': count,
    'num_leaves': leaves,
    'soar_lambda': config.index.soar_lambda,
    'num_leaves_to_search': searched,
    'reordering_num_neighbors': reorder,
  }
  crcs, sizes = {}, 0
  for part, size in processes.gather([files, _bytes(path, files)]):
    crcs.update(part)
    sizes += size
  return Built(PartFiles(options, crcs, sizes), find(searched, reorder))


def check(manifest: versions.Manifest, config: Config) -> None:
  """Raises ValueError for a version that this config cannot use."""
  if found := difference(manifest, config):
    raise ValueError(f'index version {manifest.version}: {found}')


def difference(manifest: versions.Manifest, config: Config) -> str | None:
  """What keeps a version from being used, with both values; None: nothing.

  Where rows alone are wanted, a version of any kind has them.
  """
  if manifest.dim != config.model.retrieval_size:
    return (
      f'rows have {manifest.dim} dimensions, model.retrieval_size is '
      f'{config.model.retrieval_size}'
    )
  want: dict[str, Any] = {'rows_dtype': config.index.rows_dtype}
  have: dict[str, Any] = {'rows_dtype': manifest.dtype}
  if config.index.kind != 'exact':
    want |= {'kind': config.index.kind, 'num_shards': config.index.num_shards}
    have |= {
      'kind': manifest.kind,
      'num_shards': manifest.options.get('num_shards'),
    }
  for name, value in want.items():
    if have[name] != value:
      return f'{name} is {have[name]}, index.{name} is {value}'
  return None


def read(
  index: epath.PathLike,
  manifest: versions.Manifest,
  config: Config,
  mesh: jax.sharding.Mesh,
) -> Parts | None:
  """This process's shards of a committed version; reads numpy, no devices.

  Args:
    index: Workdir.index.
    manifest: of the version.
    config: of the run; it may want less than the version has.
    mesh: over which rows are split.

  Returns:
    What `tree` takes, or searchers; None: the version has rows alone.

  Raises:
    ValueError: a file is damaged; names it.
  """
  if config.index.kind == 'scann_host':
    own = shards.owned(manifest.options['num_shards'])
    return scann_host.load(index, manifest, own, *_searched(manifest, config))
  if config.index.kind != 'scann':
    return None
  count = manifest.options['num_shards']
  # The last shards may be empty; they have a tree all the same.
  start, stop = mesh_lib.local_rows(count, mesh)
  return {
    shard: _load_tree(part_files.read(index, manifest, f'scann/{shard}.npz'))
    for shard in range(start, stop)
  }


def shapes(config: Config, num_rows: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Of the arrays of one shard's tree, for a program that is only compiled.

  Raises:
    ValueError: what a build would measure is not given.
  """
  options = config.index
  if not (options.num_leaves_to_search and options.reordering_num_neighbors):
    raise ValueError(
      'index.num_leaves_to_search, index.reordering_num_neighbors: are chosen '
      'by a build; give both to compile without one'
    )
  rows = shards.size(num_rows, options.num_shards)
  return jax.eval_shape(
    functools.partial(
      scann_build.build_shard,
      num_leaves=scann_build.leaves_of(config, rows),
      threshold=options.anisotropic_quantization_threshold,
      soar_lambda=options.soar_lambda,
    ),
    jax.ShapeDtypeStruct((rows, config.model.retrieval_size), jnp.float32),
    jax.ShapeDtypeStruct((rows,), jnp.bool_),
    jax.ShapeDtypeStruct((), jnp.int32),
  )


def _searched(manifest: versions.Manifest, config: Config) -> tuple[int, int]:
  """Leaves and reordered rows of a search: those given, else as measured."""
  given, measured = config.index, manifest.options
  return (
    given.num_leaves_to_search or measured['num_leaves_to_search'],
    given.reordering_num_neighbors or measured['reordering_num_neighbors'],
  )


def tree(
  parts: dict[int, scann_build.Part],
  manifest: versions.Manifest,
  config: Config,
  mesh: jax.sharding.Mesh,
  alive: Callable[[int, int], np.ndarray],
) -> scann.Tree:
  """Puts trees on the devices that hold their rows, without dead rows."""
  count = manifest.options['num_shards']
  parts = {
    shard: scann_build.living(
      part, alive(*shards.bounds(shard, manifest.rows, count))
    )
    for shard, part in parts.items()
  }
  some = next(iter(parts.values()))

  def put(name: str) -> jax.Array:
    def shards_of(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(count)
      return np.stack([parts[shard][name] for shard in range(start, stop)])

    return jax.make_array_from_callback(
      (count, *some[name].shape), mesh_lib.rows_sharding(mesh), shards_of
    )

  leaves, reorder = _searched(manifest, config)
  options = manifest.options
  return scann.Tree(
    **{name: put(name) for name in some},
    leaves=leaves,
    reorder=reorder,
    copies=scann_build.copies(
      options['num_leaves'], options.get('soar_lambda', 0.0)
    ),
  )


def _together(build: Callable[[], _T]) -> _T:
  """Builds in all processes; one that cannot write fails in all of them."""
  built, problem = None, None
  try:
    built = build()
  except OSError as error:
    problem = str(error)
  problem = processes.any_problem(problem)
  if problem:
    raise NotWritten(problem)
  assert built is not None
  return built


def _build_trees(
  path: epath.Path,
  config: Config,
  mesh: jax.sharding.Mesh,
  num_rows: int,
  own: range,
  load: Callable[[int], tuple[np.ndarray, np.ndarray]],
  leaves: int,
) -> tuple[dict[int, scann_build.Part], dict[str, int]]:
  """As many shards at a time as there are devices."""
  rows = shards.size(num_rows, config.index.num_shards)
  trees, files = {}, {}
  for first in range(own.start, own.stop, mesh.size):
    group = list(range(first, min(first + mesh.size, own.stop)))
    rows_GnE, valid_Gn = None, np.zeros((mesh.size, rows), bool)
    for place, shard in enumerate(group):
      rows_nE, alive_n = load(shard)
      if rows_GnE is None:
        shape = (mesh.size, rows, rows_nE.shape[1])
        rows_GnE = np.zeros(shape, rows_nE.dtype)
      rows_GnE[place, : len(rows_nE)] = rows_nE
      valid_Gn[place, : len(rows_nE)] = alive_n
    assert rows_GnE is not None
    built = scann_build.build_parts(
      rows_GnE,
      valid_Gn,
      np.resize(np.array(group, np.int32), mesh.size),
      mesh,
      num_leaves=leaves,
      threshold=config.index.anisotropic_quantization_threshold,
      soar_lambda=config.index.soar_lambda,
    )
    for shard, part in zip(group, built, strict=False):
      trees[shard] = part
      packed = io.BytesIO()
      np.savez(packed, **part)
      name = f'scann/{shard}.npz'
      files[name] = part_files.write(path, name, packed.getvalue())
  return trees, files


def _load_tree(data: bytes) -> scann_build.Part:
  with np.load(io.BytesIO(data)) as found:
    return dict(found)


def _build_searchers(
  path: epath.Path,
  config: Config,
  num_rows: int,
  own: range,
  load: Callable[[int], tuple[np.ndarray, np.ndarray]],
) -> tuple[dict[int, scann_host.Searcher], dict[str, int]]:
  """One after the other, each with all threads of the machine."""
  by_shard, files = {}, {}
  for shard in own:
    start, _ = shards.bounds(shard, num_rows, config.index.num_shards)
    rows_nE, alive_n = load(shard)
    row_n = (start + np.flatnonzero(alive_n)).astype(np.int32)
    searcher = scann_host.build(
      rows_nE[alive_n], row_n, config, scann_host.threads()
    )
    if searcher is not None:
      by_shard[shard] = searcher
      files.update(scann_host.save(path, shard, searcher))
  return by_shard, files


def _search_trees(
  trees: dict[int, scann_build.Part],
  read: Callable[[int, int], np.ndarray],
  num_rows: int,
  num_shards: int,
  query_BE: np.ndarray,
  k: int,
  leaves: int,
  reorder: int,
  copies: int,
) -> tuple[np.ndarray, np.ndarray]:
  """This process's shards, one after the other, as the run searches them."""
  rows = shards.size(num_rows, num_shards)
  found = [(np.zeros((len(query_BE), 0)), np.zeros((len(query_BE), 0), int))]
  for shard, part in trees.items():
    start, stop = shards.bounds(shard, num_rows, num_shards)
    rows_nE = read(start, stop)
    rows_nE = np.pad(rows_nE, ((0, rows - len(rows_nE)), (0, 0)))
    tree = scann.Tree(
      **{name: value[None] for name, value in part.items()},
      leaves=leaves,
      reorder=reorder,
      copies=copies,
    )
    score_BK, row_BK = jax.device_get(
      _top_k(tree, rows_nE, jnp.ones(rows, bool), query_BE, k)
    )
    row_BK = np.where(score_BK == -np.inf, -1, row_BK + start)
    found.append((score_BK, row_BK))
  return shards.best(found, k)


_top_k = jax.jit(scann.top_k, static_argnums=4)


def _bytes(path: epath.Path, files: dict[str, int]) -> int:
  return sum((path / name).stat().length for name in files)
