"""Texts and whole corpora to embeddings."""

import concurrent.futures
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes

# Texts are padded to a multiple of it, in wordpieces: as many programs as fit
# into a block.
_BUCKET = 32
_WINDOW = 16  # batches that are sorted by length together


class Interrupted(Exception):
  """An embedding was told to stop."""


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
      processes.beat(f'embedding blocks from {batch.start} on')
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
