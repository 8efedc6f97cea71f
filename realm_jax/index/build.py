"""Embedding a corpus into an index version."""

import concurrent.futures
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.index import approximate, reuse
from realm_jax.index import recall as recall_lib
from realm_jax.index.recall import RecallProbe, probe_queries
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.workdir import rows as rows_lib
from realm_jax.workdir import versions

# Texts are padded to a multiple of it, in wordpieces: as many programs as fit
# into a block.
_BUCKET = 32
_WINDOW = 16  # batches that are sorted by length together
_STOPPED = 'stopped'


class Interrupted(Exception):
  """A build was told to stop; nothing of it is on disk."""


class Unpublished(OSError):
  """A build could not be written, as on a full disk; nothing of it is left."""


def embed_tokens(
  params: dict[str, Any], token_BL: jax.Array, config: Config, sep_id: int
) -> jax.Array:
  """Texts to vectors, [B, E] float32, without dropout."""
  # What else the config says is no part of the program: stages share it.
  config = Config(model=config.model, pooling=config.pooling)
  return _embed_tokens(params, token_BL, config=config, sep_id=sep_id)


@functools.partial(jax.jit, static_argnames=('config', 'sep_id'))
def _embed_tokens(
  params: dict[str, Any], token_BL: jax.Array, config: Config, sep_id: int
) -> jax.Array:
  return parts.bind('embedder', config, params)(token_BL, sep_id=sep_id)


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
    ValueError: the recall that was measured is below index.min_recall.
  """
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
    _agree_on(next(filter(None, processes.gather(problem)), None))
    assert written is not None
    writer, probe = written
    recall, parts = probe.recall(), None
    if config.index.kind != 'exact':
      parts, recall = _add_parts(
        index, version, writer, corpus, config, mesh, probe
      )
    elif base is not None and base.manifest.recall:
      # Of copied rows it is not seen what rounding did to them.
      recall = {
        name: min(value, base.manifest.recall.get(name, value))
        for name, value in recall.items()
      }
    _check_recall(index, version, recall, config)
    if processes.is_first():
      try:
        writer.commit(
          checkpoint_step=checkpoint_step,
          embedder_digest=embedder_digest,
          corpus_fingerprint=corpus.fingerprint,
          tokenizer_digest=corpus.tokenizer_digest,
          kind=config.index.kind,
          recall=recall,
          build_seconds=round(time.monotonic() - began, 3),
          parts=parts,
        )
      except OSError as error:
        problem = str(error)
    _agree_on(processes.from_first(problem))
  except BaseException as error:
    if processes.is_first():
      versions.remove_uncommitted(index)
    if isinstance(error, Interrupted | Unpublished):  # so in all processes
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
    probe = RecallProbe(corpus, np.asarray(query_BE))
    first, end = own
    for start, stored_nE in base.read(first, end) if base else ():
      if stopped():
        raise Interrupted
      writer.write(start, stored_nE)
      probe.add(start, stored_nE.astype(np.float32), stored_nE)
      first = start + len(stored_nE)
    for start, rows_nE in embed_corpus(
      params, corpus, config, mesh, stopped, (first, end)
    ):
      processes.beat(f'index version {version}, row {start}')
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


def _check_recall(
  index: epath.PathLike, version: int, recall: dict[str, float], config: Config
) -> None:
  measured = recall[f'recall@{recall_lib.K}']
  if measured < config.index.min_recall:
    raise ValueError(
      f'{index}: version {version} has recall@{recall_lib.K} {measured:.4f}, '
      f'below index.min_recall {config.index.min_recall}; not published'
    )


def _add_parts(
  index: epath.PathLike,
  version: int,
  writer: rows_lib.VersionWriter,
  corpus: Corpus,
  config: Config,
  mesh: jax.sharding.Mesh,
  probe: RecallProbe,
) -> tuple[rows_lib.PartFiles, dict[str, float]]:
  """Builds what an approximate kind needs of the rows, and measures it."""
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
    probe.stored_rows(),
    before,
  )
  seconds = round(time.monotonic() - began, 3)
  parts = built.parts._replace(
    options={**built.parts.options, 'seconds': seconds}
  )
  recall = recall_lib.recall_of(built.row_BK, probe.exact_rows())
  return parts, {f'recall@{recall_lib.K}': recall}


def embed_corpus(
  params: dict[str, Any],
  corpus: Corpus,
  config: Config,
  mesh: jax.sharding.Mesh,
  stopped: Callable[[], bool] = lambda: False,
  rows: tuple[int, int] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
  """Embeds blocks, in windows of some batches.

  The blocks of a window are sorted by length: a batch is padded to its own
  longest text, not to that of the corpus. One window is read and one batch
  computed while the batch before is copied.

  Args:
    params: of the document embedder.
    corpus: Z.
    config: of the run.
    mesh: over which a batch is split.
    stopped: asked between batches.
    rows: [start, stop) of the blocks; default all.

  Yields:
    (first row, rows_nE float32) of each window, in order.

  Raises:
    Interrupted: `stopped()` said so.
  """
  sep_id = corpus.tokenizer.sep_id
  pending: tuple[Batch, jax.Array] | None = None
  with jax.set_mesh(mesh):
    for batch in read_batches(corpus, config, mesh, rows):
      if stopped():
        raise Interrupted
      token_BL = mesh_lib.put_whole({'token_BL': batch.token_BL}, mesh)
      done = pending
      pending = (
        batch,
        embed_tokens(params, **token_BL, config=config, sep_id=sep_id),
      )
      if done is not None:
        yield from _collect(*done)
    if pending is not None:
      yield from _collect(*pending)


class Batch(NamedTuple):
  """Blocks of about one length, out of a window of consecutive rows."""

  token_BL: np.ndarray  # padded with texts of nothing
  place_b: np.ndarray  # of its real texts in the window
  start: int  # the window's first row
  rows_nE: np.ndarray  # the window's embeddings, filled in as they come
  last: bool  # of the window


def read_batches(
  corpus: Corpus,
  config: Config,
  mesh: jax.sharding.Mesh,
  rows: tuple[int, int] | None = None,
) -> Iterator[Batch]:
  """What `embed_corpus` embeds: the blocks, each window sorted by length."""
  first_row, end_row = rows or (0, corpus.num_blocks)
  data = mesh.shape['data']
  size = -(-config.refresh.batch_size // data) * data
  window = _WINDOW * size

  def read(start: int) -> list[Batch]:
    stop = min(start + window, end_row)
    token_nL = corpus.tokens(slice(start, stop))
    length_n = (token_nL != 0).sum(1)
    order_n = np.argsort(length_n, kind='stable')
    rows_nE = np.empty((len(order_n), config.model.retrieval_size), np.float32)
    batches = []
    for first in range(0, len(order_n), size):
      place_b = order_n[first : first + size]
      longest = -(-int(length_n[place_b[-1]]) // _BUCKET) * _BUCKET
      length = min(longest, corpus.block_length)
      token_BL = np.zeros((size, length), np.int32)
      token_BL[: len(place_b)] = token_nL[place_b, :length]
      last = first + size >= len(order_n)
      batches.append(Batch(token_BL, place_b, start, rows_nE, last))
    return batches

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    starts = range(first_row, end_row, window)
    ahead = pool.submit(read, first_row)
    for start in starts:
      window_batches = ahead.result()
      if start + window < end_row:
        ahead = pool.submit(read, start + window)
      yield from window_batches


def _collect(
  batch: Batch, rows_BE: jax.Array
) -> Iterator[tuple[int, np.ndarray]]:
  """Puts a batch in its window; yields the window when it is complete."""
  count = len(batch.place_b)
  batch.rows_nE[batch.place_b] = np.asarray(rows_BE)[:count]
  if batch.last:
    yield batch.start, batch.rows_nE
