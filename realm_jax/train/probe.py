"""What a swap of the index changes, on queries that never do.

The queries are those of the run's very first batch: fixed by the seed,
whatever step the run is at. For K rows retrieved a query:

  probe_overlap@K        share of the new version's K rows that were among the
                         old one's;
  probe_kl               KL(new || old) in nats of p(z|x), the softmax of
                         q.z / temperature by each version's own rows, over the
                         blocks that either version retrieves;
  probe_recall_before@K  share of the best K rows by fresh embeddings that the
  probe_recall_after@K   old (new) version retrieves. Fresh: embedded with the
                         parameters of the step, of the blocks that either
                         retrieves; blocks that neither finds are not seen.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.config import Config
from realm_jax.index.gather import gather
from realm_jax.index.search import Index, search
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train import losses
from realm_jax.train.state import query_embedder

_DEPTH = 2  # times K: how deep `freshness` looks


class Probe:
  """Measures indexes on a run's fixed queries; one small program on devices."""

  def __init__(
    self,
    batch: dict[str, np.ndarray],
    config: Config,
    num_rows: int,
    k: int,
    sep_id: int,
    mesh: jax.sharding.Mesh,
  ):
    """See the top of this file.

    Args:
      batch: the first one, this process's part of it.
      config: of the run.
      num_rows: N.
      k: rows that a step retrieves for a query.
      sep_id: id of [SEP].
      mesh: of the run.
    """
    data = mesh.shape['data']
    _, parts_of_batch = mesh_lib.batch_slice(mesh)
    queries = min(config.refresh.probe_queries, config.batch_size)
    queries = max(queries // data, 1) * data
    mine = batch['query_BL'][: queries // parts_of_batch]
    self._query = mesh_lib.put_batch({'query_BL': mine}, mesh)
    self._k = min(k, num_rows)
    self._depth = min(_DEPTH * self._k, num_rows)
    # What else the config says is no part of the program.
    self._static = {
      'config': Config(
        model=config.model,
        pooling=config.pooling,
        score_temperature=config.score_temperature,
      ),
      'sep_id': sep_id,
      'k': self._k,
    }

  def compare(
    self, params: dict[str, Any], old: Index, new: Index
  ) -> dict[str, float]:
    """What changes when a version of the index takes the place of another.

    Args:
      params: of the step between which and the next it does.
      old: the index before.
      new: after; of the same corpus.

    Returns:
      The measures above; `@K` names K.
    """
    found = _compare(params, old, new, **self._query, **self._static)
    overlap, kl, before, after = map(float, mesh_lib.to_host(found))
    return {
      f'probe_overlap@{self._k}': overlap,
      'probe_kl': kl,
      f'probe_recall_before@{self._k}': before,
      f'probe_recall_after@{self._k}': after,
    }

  def freshness(self, params: dict[str, Any], index: Index) -> float:
    """Share of the best K rows by fresh embeddings that the index retrieves.

    Of the 2K rows that it finds best.
    """
    found = _freshness(
      params, index, **self._query, **self._static, depth=self._depth
    )
    return float(mesh_lib.to_host(found))


def overlap(one_BK: jax.Array, other_BK: jax.Array) -> jax.Array:
  """The share of the rows in `one_BK` that are in `other_BK`; -1: no row."""
  same_BKK = one_BK[:, :, None] == other_BK[:, None, :]
  there_BK = one_BK >= 0
  hits = (same_BKK.any(2) & there_BK).sum()
  return hits / jnp.maximum(there_BK.sum(), 1)


@functools.partial(jax.jit, static_argnames=('config', 'sep_id', 'k'))
def _compare(
  params: dict[str, Any],
  old: Index,
  new: Index,
  query_BL: jax.Array,
  config: Config,
  sep_id: int,
  k: int,
) -> tuple[jax.Array, ...]:
  query_BE = _embed_queries(params, query_BL, config, sep_id)
  _, old_BK = search(old, query_BE, k)
  _, new_BK = search(new, query_BE, k)
  fresh_BK = jnp.where(
    (new_BK[:, :, None] == old_BK[:, None, :]).any(2), -1, new_BK
  )
  row_BU = jnp.concatenate([old_BK, fresh_BK], 1)  # each block once

  def log_probs(rows_NE: jax.Array) -> jax.Array:
    score_BU = _scores(query_BE, gather(rows_NE, row_BU))
    return losses.masked_log_softmax(
      score_BU / config.score_temperature, row_BU >= 0
    )

  log_new_BU, log_old_BU = log_probs(new.rows_NE), log_probs(old.rows_NE)
  kl_BU = jnp.where(
    row_BU >= 0, jnp.exp(log_new_BU) * (log_new_BU - log_old_BU), 0.0
  )
  best_BK = _best_fresh(params, new, query_BE, row_BU, config, sep_id, k)
  return (
    overlap(new_BK, old_BK),
    jnp.maximum(kl_BU.sum(-1).mean(), 0.0),  # rounding
    overlap(best_BK, old_BK),
    overlap(best_BK, new_BK),
  )


@functools.partial(jax.jit, static_argnames=('config', 'sep_id', 'k', 'depth'))
def _freshness(
  params: dict[str, Any],
  index: Index,
  query_BL: jax.Array,
  config: Config,
  sep_id: int,
  k: int,
  depth: int,
) -> jax.Array:
  query_BE = _embed_queries(params, query_BL, config, sep_id)
  _, row_BK = search(index, query_BE, depth)
  best_BK = _best_fresh(params, index, query_BE, row_BK, config, sep_id, k)
  return overlap(best_BK, row_BK[:, :k])


def _embed_queries(
  params: dict[str, Any], query_BL: jax.Array, config: Config, sep_id: int
) -> jax.Array:
  embedder = parts.bind('embedder', config, query_embedder(params))
  return embedder(query_BL, sep_id=sep_id)


def _best_fresh(
  params: dict[str, Any],
  index: Index,
  query_BE: jax.Array,
  row_BU: jax.Array,
  config: Config,
  sep_id: int,
  k: int,
) -> jax.Array:
  """The k of some rows that score best by fresh embeddings, [B, K]."""
  batch, count = row_BU.shape
  token_BUL = gather(index.tokens_NL, row_BU)
  embedder = parts.bind('embedder', config, params['document_embedder'])
  rows_BUE = embedder(
    token_BUL.reshape(batch * count, -1), sep_id=sep_id
  ).reshape(batch, count, -1)
  score_BU = jnp.where(row_BU >= 0, _scores(query_BE, rows_BUE), -jnp.inf)
  _, place_BK = jax.lax.top_k(score_BU, k)
  return jnp.take_along_axis(row_BU, place_BK, 1)


def _scores(query_BE: jax.Array, rows_BUE: jax.Array) -> jax.Array:
  return jnp.einsum('BE,BUE->BU', query_BE, rows_BUE)
