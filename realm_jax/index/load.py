"""An index version and the token table, put on the devices."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.index import approximate, memory, shards
from realm_jax.index.search import Index
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.workdir import versions


def load_index(
  corpus: Corpus,
  config: Config,
  mesh: jax.sharding.Mesh,
  read: Callable[[int, int], np.ndarray],
  alive: Callable[[int, int], np.ndarray] | None = None,
  manifest: versions.Manifest | None = None,
  parts: approximate.Parts | None = None,
  copies: int = 1,
) -> Index:
  """Puts an index version and the token table on the devices.

  Args:
    corpus: Z.
    config: of the run.
    mesh: over which rows are split.
    read: `read(start, stop)` gives rows of the version.
    alive: `alive(start, stop)` says which rows may be found; None: those of
      the corpus.
    manifest: of the version, with
    parts: what approximate.read gave for it.
    copies: versions that the devices must have room for: 2 where others are
      swapped in.

  Returns:
    The Index; of the kind scann_host without rows.

  Raises:
    ValueError: the devices have no room; says which options would fit.
  """
  length = corpus.block_length
  memory.check(config, corpus.num_blocks, length, mesh, copies)
  token_dtype = corpus.tokens(slice(0, 1)).dtype
  count = corpus.num_blocks
  total = shards.padded_rows(config, count, mesh)
  alive = alive or corpus.alive
  index = Index(
    rows_NE=None,
    valid_N=mesh_lib.put_rows(alive, count, (), np.bool_, mesh, total),
    tokens_NL=mesh_lib.put_rows(
      lambda start, stop: corpus.tokens(slice(start, stop)),
      count,
      (length,),
      token_dtype,
      mesh,
      on_host=config.index.token_table == 'host',
    ),
    block=config.index.search_block,
  )
  return put_version(index, config, count, mesh, read, alive, manifest, parts)


def put_version(
  index: Index,
  config: Config,
  num_rows: int,
  mesh: jax.sharding.Mesh,
  read: Callable[[int, int], np.ndarray],
  alive: Callable[[int, int], np.ndarray],
  manifest: versions.Manifest | None = None,
  parts: approximate.Parts | None = None,
) -> Index:
  """The index with the rows of another version; see load_index."""
  if config.index.kind == 'scann_host':
    return index
  rows_NE = mesh_lib.put_rows(
    read,
    num_rows,
    (config.model.retrieval_size,),
    jnp.dtype(config.index.rows_dtype),
    mesh,
    shards.padded_rows(config, num_rows, mesh),
  )
  tree = None
  if isinstance(parts, dict):
    assert manifest is not None
    tree = approximate.tree(parts, manifest, config, mesh, alive)
  return dataclasses.replace(index, rows_NE=rows_NE, tree=tree)
