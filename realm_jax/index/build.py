"""Embedding a corpus into an index version."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.index import approximate, reuse
from realm_jax.index import recall as recall_lib
from realm_jax.index.embed import Interrupted, embed_corpus, embed_tokens
from realm_jax.index.recall import RecallProbe, probe_queries
from realm_jax.parallel import processes
from realm_jax.workdir import rows as rows_lib
from realm_jax.workdir import versions

_STOPPED = 'stopped'
_SAY_SECONDS = 30  # between two lines that tell how far a build is


class Unpublished(OSError):
  """A build could not be written, as on a full disk; nothing of it is left."""


class Refused(ValueError):
  """A build finds less than index.min_recall; nothing of it is left."""


def build_version(
  index: epath.PathLike,
  params: dict[str, Any],
  corpus: Corpus,
  config: Config,
  mesh: jax.sharding.Mesh,
  checkpoint_step: int,
  embedder_digest: str,
  stopped: Callable[[], bool] = lambda: False,
  shared: epath.Path | None = None,
) -> versions.Manifest:
  """Embeds all blocks and publishes them as the next index version.

  Blocks are read ahead of the devices and written behind them; no more than
  a few windows are in memory. Each process of a run embeds its own rows at
  its own pace; then they agree, and publish it or leave nothing of it. Rows
  that an earlier version of this embedder has are copied. The caller holds the
  refresher's lock.

  Args:
    index: Workdir.index.
    params: of the document embedder, over `mesh`.
    corpus: Z.
    config: of the run.
    mesh: of this process's devices, over which a batch is split.
    checkpoint_step: step that `params` are of.
    embedder_digest: of `params`.
    stopped: asked between batches.
    shared: Workdir.shared_index: its numbers are not given again, its rows
      may be copied.

  Returns:
    The manifest of the committed version.

  Raises:
    Interrupted: `stopped()` said so, in any process.
    Unpublished: a process could not write its rows.
    Refused: the recall that was measured is below index.min_recall.
    ValueError: the corpus has no block that was not removed.
  """
  if corpus.manifest['num_removed_blocks'] == corpus.num_blocks:
    raise ValueError(f'{corpus.path}: all of its documents were removed')
  began = time.monotonic()
  version = 0
  if processes.is_first():
    versions.remove_uncommitted(index)
    version = versions.next_version(index, shared)
  version = processes.from_first(version)
  places = [epath.Path(index)] + ([] if shared is None else [shared])
  base = reuse.find_base(places, corpus, config, embedder_digest)
  problem, written = None, None
  try:
    try:
      written = _write_rows(
        index, version, params, corpus, config, mesh, stopped, base
      )
    except Interrupted:
      problem = _STOPPED
    except OSError as error:
      problem = str(error)
    _agree_on(processes.any_problem(problem))
    assert written is not None
    writer, probe = written
    try:
      recall, parts = _measure(
        index, version, writer, corpus, config, mesh, probe, base
      )
    except OSError as error:
      if processes.alone() or isinstance(error, approximate.NotWritten):
        raise Unpublished(str(error)) from error
      raise  # the others wait for this process: the run ends
    _check_recall(index, version, recall, config)
    problem = _commit(
      writer,
      checkpoint_step=checkpoint_step,
      embedder_digest=embedder_digest,
      corpus_fingerprint=corpus.fingerprint,
      tokenizer_digest=corpus.tokenizer_digest,
      kind=config.index.kind,
      recall=recall,
      build_seconds=round(time.monotonic() - began, 3),
      parts=parts,
    )
    _agree_on(processes.from_first(problem))
  except BaseException as error:
    if processes.is_first():
      versions.remove_uncommitted(index)
    # So in all processes:
    if isinstance(error, Interrupted | Unpublished | Refused):
      processes.barrier()
    raise
  return versions.read_manifest(index, version)


def _write_rows(
  index: epath.PathLike,
  version: int,
  params: dict[str, Any],
  corpus: Corpus,
  config: Config,
  mesh: jax.sharding.Mesh,
  stopped: Callable[[], bool],
  base: reuse.Base | None,
) -> tuple[rows_lib.VersionWriter, RecallProbe]:
  """Copies or embeds this process's rows and writes them; no commit."""
  process, count = jax.process_index(), jax.process_count()
  writer = rows_lib.VersionWriter(
    index,
    version,
    rows=corpus.num_blocks,
    dim=config.model.retrieval_size,
    dtype=config.index.rows_dtype,
    chunk_rows=min(rows_lib.CHUNK_ROWS, -(-corpus.num_blocks // count)),
  )
  own = rows_lib.owned_rows(
    corpus.num_blocks, process, count, writer.chunk_rows
  )
  dtype = jnp.dtype(config.index.rows_dtype)
  try:
    with jax.set_mesh(mesh):
      query_BE = embed_tokens(
        params,
        probe_queries(corpus, config),
        config=config,
        sep_id=corpus.tokenizer.sep_id,
      )
    probe = RecallProbe(corpus, np.asarray(query_BE), config.index.search_block)
    first, end = own
    for start, stored_nE in base.read(first, end) if base else ():
      if stopped():
        raise Interrupted
      writer.write(start, stored_nE)
      probe.add(start, stored_nE.astype(np.float32), stored_nE)
      first = start + len(stored_nE)
    said = time.monotonic()
    for start, rows_nE in embed_corpus(
      params, corpus, config, mesh, stopped, (first, end)
    ):
      if time.monotonic() - said > _SAY_SECONDS:
        said = time.monotonic()
        processes.say(f'index version {version}: {start:,} of {end:,} blocks')
      stored_nE = rows_nE.astype(dtype)
      writer.write(start, stored_nE)
      probe.add(start, rows_nE, stored_nE)
    writer.finish()
  except BaseException:
    writer.discard()
    raise
  return writer, probe


def _agree_on(problem: str | None) -> None:
  """Raises in all processes what kept one of them from its part."""
  if problem == _STOPPED:
    raise Interrupted
  if problem is not None:
    raise Unpublished(problem)


def _commit(writer: rows_lib.VersionWriter, **manifest: Any) -> str | None:
  """Commits, in the first process alone; why it could not."""
  if processes.is_first():
    try:
      writer.commit(**manifest)
    except OSError as error:
      return str(error)
  return None


def _check_recall(
  index: epath.PathLike, version: int, recall: dict[str, float], config: Config
) -> None:
  measured = recall[f'recall@{recall_lib.K}']
  if measured < config.index.min_recall:
    raise Refused(
      f'{index}: version {version} has recall@{recall_lib.K} {measured:.4f}, '
      f'below index.min_recall {config.index.min_recall}; not published'
    )


def _measure(
  index: epath.PathLike,
  version: int,
  writer: rows_lib.VersionWriter,
  corpus: Corpus,
  config: Config,
  mesh: jax.sharding.Mesh,
  probe: RecallProbe,
  base: reuse.Base | None,
) -> tuple[dict[str, float], rows_lib.PartFiles | None]:
  """The recall of what was written; builds what its kind has beside the rows.

  `base` is where rows were copied from.
  """
  if config.index.kind == 'exact':
    recall = probe.recall()
    if base is not None and base.manifest.kind == 'exact':
      # Of copied rows it is not seen what rounding did to them. (The recall of
      # another kind is that of its codes.)
      recall = {
        name: min(value, base.manifest.recall.get(name, value))
        for name, value in recall.items()
      }
    return recall, None
  began = time.monotonic()
  before = processes.from_first(
    versions.newest_options(index, config.index.kind, config.index.num_shards)
    if processes.is_first()
    else None
  )
  built = approximate.build(
    versions.directory(index, version),
    config,
    mesh,
    corpus.num_blocks,
    writer.read,
    corpus.alive,
    probe.query_BE,
    probe.exact_rows(),
    probe.stored_rows(),
    before,
  )
  seconds = round(time.monotonic() - began, 3)
  parts = built.parts._replace(
    options={**built.parts.options, 'seconds': seconds}
  )
  recall = recall_lib.recall_of(built.row_BK, probe.exact_rows())
  return {f'recall@{recall_lib.K}': recall}, parts
