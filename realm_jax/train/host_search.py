"""Candidates of the next batch, found by the hosts while the step runs.

Before a step is dispatched, the queries of the batch after it are embedded
with the parameters that the step starts from: a small program of its own. A
thread waits for them, asks the searchers, and puts what was found in the batch.
The devices never wait for a search that is faster than a step; the query
encoder that searches is one step old.
"""

import concurrent.futures
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from realm_jax.config import Config
from realm_jax.index import shards
from realm_jax.index.scann_host import HostIndex
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.train.state import query_embedder

Batch = dict[str, np.ndarray]
# Results are kept until nobody can want them: processes are never further
# apart than a step, in which all take part.
_KEPT_CALLS = 4


class HostSearch:
  """Batches with their candidates; see the top of this file.

  Args:
    config: of the run.
    mesh: of the run.
    batches: without candidates.
    k: candidates of a query.
    sep_id: of the vocabulary.
  """

  def __init__(
    self,
    config: Config,
    mesh: jax.sharding.Mesh,
    batches: Iterator[Batch],
    k: int,
    sep_id: int,
  ):
    self._config = config
    self._batches = batches
    self._mesh = mesh
    self._k = k
    self._part, self._parts = mesh_lib.batch_slice(mesh)
    # Every process is asked about all queries.
    self._embed = jax.jit(
      functools.partial(_embed, config=config, sep_id=sep_id),
      out_shardings=mesh_lib.replicated(mesh),
    )
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._calls = 0
    # A batch, the search for it, and what `since` was then.
    self._next: tuple[Batch, concurrent.futures.Future, int] | None = None

  def take(
    self, params: dict[str, Any], index: HostIndex, since: int
  ) -> tuple[Batch, int, int]:
    """The batch of the step that comes now; starts the search for the next.

    Args:
      params: that the step starts from, not donated yet.
      index: to search.
      since: the step that it was made of.

    Returns:
      The batch with found_score_BK, found_row_BK and, where the index has
      rows, found_row_BKE; how many steps old its query encoder was; and the
      step that the index was made of in which they were found.
    """
    if self._next is None:  # a new run: its first batch is waited for
      batch, stale, searched = next(self._batches), 0, since
      search = self._start(params, batch, index)
    else:
      (batch, search, searched), stale = self._next, 1
    found = search.result()
    following = next(self._batches)
    self._next = following, self._start(params, following, index), since
    return batch | found, stale, searched

  def pending(self) -> dict[str, jax.Array] | None:
    """What was found for the next batch, to be saved with the step before."""
    if self._next is None:
      return None
    found = self._next[1].result()
    since = np.full(len(found['found_row_BK']), self._next[2], np.int32)
    return mesh_lib.put_batch({**found, 'since_B': since}, self._mesh)

  def abstract(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of `pending` for a global batch, or of more."""
    sharding = jax.sharding.NamedSharding(self._mesh, mesh_lib.BATCH)
    size = self._config.model.retrieval_size
    return {
      name: jax.ShapeDtypeStruct((batch_size, *more), dtype, sharding=sharding)
      for name, more, dtype in (
        ('found_score_BK', (self._k,), np.float32),
        ('found_row_BK', (self._k,), np.int32),
        ('found_row_BKE', (self._k, size), np.float32),
        ('since_B', (), np.int32),
      )
    }

  def go_on(self, found: dict[str, jax.Array]) -> None:
    """Takes up what was pending when a step was saved."""
    whole = mesh_lib.to_host(found)
    size = len(whole['found_row_BK']) // self._parts
    own = slice(self._part * size, (self._part + 1) * size)
    batch = {name: np.asarray(value[own]) for name, value in whole.items()}
    done: concurrent.futures.Future = concurrent.futures.Future()
    since = int(batch.pop('since_B')[0])
    done.set_result(batch)
    self._next = next(self._batches), done, since

  def close(self) -> None:
    self._pool.shutdown(cancel_futures=True)

  def _start(
    self, params: dict[str, Any], batch: Batch, index: HostIndex
  ) -> concurrent.futures.Future:
    queries = {'query_BL': batch['query_BL']}
    query_BE = self._embed(
      query_embedder(params), **mesh_lib.put_batch(queries, self._mesh)
    )
    self._calls += 1
    return self._pool.submit(self._find, self._calls, query_BE, index)

  def _find(self, call: int, query_BE: jax.Array, index: HostIndex) -> Batch:
    """Runs in the thread, which touches no device."""
    found = index.searchers.search(np.asarray(query_BE), self._k)
    score_bK, row_bK = self._exchange(call, *found)
    return _with_rows(
      {'found_score_BK': score_bK, 'found_row_BK': row_bK}, index
    )

  def _exchange(
    self, call: int, score_BK: np.ndarray, row_BK: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """All processes' results for the queries of this process's part.

    A process is told of its own queries alone: what travels to it is the
    size of a batch, however many processes there are.
    """
    if processes.alone():
      return score_BK, row_BK
    for part in range(self._parts):
      size = len(row_BK) // self._parts
      own = slice(part * size, (part + 1) * size)
      processes.tell(
        f'found/{call}/{part}/{jax.process_index()}',
        [shards.finite(score_BK[own]), row_BK[own].tolist()],
      )
      if call > _KEPT_CALLS:
        processes.forget(
          f'found/{call - _KEPT_CALLS}/{part}/{jax.process_index()}'
        )
    everyone = [
      processes.wait_for(f'found/{call}/{self._part}/{process}')
      for process in range(jax.process_count())
    ]
    score_bK, row_bK = shards.best(
      [tuple(map(np.array, pair)) for pair in everyone], self._k
    )
    return score_bK.astype(np.float32), row_bK.astype(np.int32)


def _with_rows(batch: Batch, index: HostIndex) -> Batch:
  if index.rows_NE is None:
    return batch
  return batch | {'found_row_BKE': index.rows(batch['found_row_BK'])}


def _embed(
  embedder: dict[str, Any], query_BL: jax.Array, config: Config, sep_id: int
) -> jax.Array:
  return parts.bind('embedder', config, embedder)(query_BL, sep_id=sep_id)
