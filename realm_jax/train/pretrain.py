"""REALM pre-training: retrieval and reading from masked words alone."""

from typing import Any

import jax
import jax.numpy as jnp

from realm_jax.config import Config
from realm_jax.index.gather import gather
from realm_jax.index.search import Index, drop_excluded, find
from realm_jax.model import parts
from realm_jax.model.joint import join
from realm_jax.train import losses, samples
from realm_jax.train.optimizer import RETRIEVER
from realm_jax.train.renew import renew
from realm_jax.train.state import TrainState, query_embedder
from realm_jax.train.update import Batch, update

TRAINED = (*RETRIEVER, 'encoder')


def pretrain_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  index: Index | None,
  key: jax.Array,
  config: Config,
  cls_id: int,
  sep_id: int,
  num_rows: int | None = None,
) -> tuple[TrainState, Index | None, dict[str, jax.Array]]:
  """One step of knowledge-augmented pre-training, one XLA program.

  Args:
    state: with the embedders' and the encoder's parameters.
    batch: query_BL (masked), position_BM, target_BM, weight_BM, exclude_BX;
      candidates that the hosts have found, see index.search.find.
    index: over Z; only selects the candidates. None: the null document is
      the only one (num_candidates 1).
    key: of dropout.
    config: static.
    cls_id: static, id of [CLS].
    sep_id: static, id of [SEP].
    num_rows: static, N without padding; None: the index has none.

  Returns:
    The next state, the index, and metrics: scalars, and `sample`.
  """
  total = losses.marginal_count(batch['weight_BM'], config.marginal)

  def loss_fn(trained: dict[str, Any], batch: Batch, key: jax.Array) -> Any:
    return pretrain_loss(
      trained, batch, total, index, key, config, cls_id, sep_id
    )

  before = state
  state, metrics = update(state, TRAINED, loss_fn, batch, key, config)
  retrieved = metrics.pop('retrieved')
  if index is not None and config.refresh.changes_rows():
    metrics['retrieved_staleness_steps'] = retrieved_staleness(
      index, retrieved['row_BK'], state.step
    )
    index = renew(
      index,
      before.params,
      before.step,
      retrieved,
      config,
      num_rows or len(index.rows_NE),
      sep_id,
    )
  return (
    state,
    index,
    {
      **metrics,
      'most_retrieved_share': most_retrieved_share(retrieved['row_BK']),
      'sample': samples.take(
        *(retrieved[name] for name in ('row_BK', 'log_prior_BK', 'log_prob_BK'))
      ),
    },
  )


def pretrain_loss(
  params: dict[str, Any],
  batch: Batch,
  total: jax.Array,
  index: Index | None,
  key: jax.Array | None,
  config: Config,
  cls_id: int,
  sep_id: int,
) -> tuple[jax.Array, dict[str, Any]]:
  """The marginal likelihood loss (paper equation 1) and its metrics.

  `batch` may be a part of the global batch; `total` is what the sum over the
  global batch is divided by. Among the metrics is `retrieved`, by example.
  """
  keys = jax.random.split(key, 4) if key is not None else (None,) * 4
  query_side = parts.bind('embedder', config, query_embedder(params))
  query_BE = query_side(batch['query_BL'], sep_id=sep_id, key=keys[0])

  # The index selects; over-retrieval leaves room for the trivial blocks.
  k = config.num_candidates - 1
  exclude_BX = batch['exclude_BX']
  if index is not None and k:
    found = find(index, batch, query_BE, k + exclude_BX.shape[1])
    _, row_BK, trivial_B = drop_excluded(*found, exclude_BX, k)
  else:
    row_BK = jnp.zeros((query_BE.shape[0], 0), jnp.int32)
    trivial_B = jnp.zeros(query_BE.shape[0], bool)
  document_BKL, document_BKE, valid_BK = candidates(
    params, index, query_BE, row_BK, keys[1:3], config, cls_id, sep_id
  )
  score_BK = jnp.einsum('BE,BKE->BK', query_BE, document_BKE)
  score_BK = score_BK / config.score_temperature
  score_BK = score_BK.at[:, 0].add(config.null_bias)
  log_prior_BK = losses.masked_log_softmax(score_BK, valid_BK)
  logits_BKMV = read_masked(
    params, batch, document_BKL, keys[3], config, sep_id
  )
  target_BKM = jnp.broadcast_to(
    batch['target_BM'][:, None], logits_BKMV.shape[:3]
  )
  token_log_prob_BKM = losses.token_log_probs(logits_BKMV, target_BKM)
  loss, aux = losses.marginal_loss(
    log_prior_BK, token_log_prob_BKM, batch['weight_BM'], total, config.marginal
  )
  right_BKM = logits_BKMV.argmax(-1) == target_BKM
  metrics = _metrics(
    log_prior_BK, valid_BK, right_BKM, batch['weight_BM'], aux, trivial_B
  )
  if config.masking != 'uniform':  # whose masks are no text
    hold_BK = holds(
      document_BKL, batch['target_BM'], batch['weight_BM'], sep_id
    )
    metrics['target_retrieved'] = hold_BK.any(1).mean()
    # Near the utility of all: the reader does not see what passages hold.
    metrics['target_utility'] = losses.retrieval_utility(
      aux['log_prob_BK'], hold_BK
    )
  retrieved = {
    'row_BK': row_BK,
    'log_prior_BK': log_prior_BK,
    'log_prob_BK': aux['log_prob_BK'],
  }
  if config.refresh.write_back and not config.model.dropout:
    retrieved['fresh_BKE'] = document_BKE[:, 1:]
  return loss, {**metrics, 'retrieved': jax.lax.stop_gradient(retrieved)}


def candidates(
  params: dict[str, Any],
  index: Index | None,
  query_BE: jax.Array,
  row_BK: jax.Array,
  keys: tuple[jax.Array | None, ...],
  config: Config,
  cls_id: int,
  sep_id: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The null document and the retrieved blocks, embedded afresh.

  Returns:
    document_BKL token ids, document_BKE, and valid_BK, K one more than `row_BK`
    has: candidate 0 is the null document.
  """
  embedder = parts.bind('embedder', config, params['document_embedder'])
  batch, retrieved = row_BK.shape
  null_1L = jnp.array([[cls_id, sep_id, sep_id]], jnp.int32)
  null_1E = embedder(null_1L, sep_id=sep_id, key=keys[0])
  document_BKE = jnp.broadcast_to(
    null_1E[:, None], (batch, 1, null_1E.shape[1])
  )
  document_BKL = jnp.broadcast_to(null_1L[:, None], (batch, 1, 3))
  if index is not None and retrieved:
    found_BKL = gather(index.tokens_NL, row_BK)
    length = found_BKL.shape[2]
    found_BKE = embedder(
      found_BKL.reshape(batch * retrieved, length), sep_id=sep_id, key=keys[1]
    ).reshape(batch, retrieved, -1)
    document_BKL = jnp.pad(document_BKL, ((0, 0), (0, 0), (0, length - 3)))
    document_BKL = jnp.concatenate([document_BKL, found_BKL], 1)
    document_BKE = jnp.concatenate([document_BKE, found_BKE], 1)
  valid_BK = jnp.concatenate([jnp.ones((batch, 1), bool), row_BK >= 0], 1)
  return document_BKL, document_BKE, valid_BK


def read_masked(
  params: dict[str, Any],
  batch: dict[str, jax.Array],
  document_BKL: jax.Array,
  key: jax.Array | None,
  config: Config,
  sep_id: int,
) -> jax.Array:
  """The encoder's logits at the masked positions given each candidate.

  Returns:
    [B, K, M, V] float32.
  """
  query_BL = batch['query_BL']
  batch_size, num_candidates, length = document_BKL.shape
  # A document's [CLS] and first [SEP] have no place in the joint text.
  joint = query_BL.shape[1] + length - 2
  token_BKJ, segment_BKJ, _, _ = join(query_BL, document_BKL, joint, sep_id)
  position_BKM = jnp.broadcast_to(
    batch['position_BM'][:, None],
    (batch_size, num_candidates, batch['position_BM'].shape[1]),
  )
  encoder = parts.bind('encoder', config, params['encoder'])
  flat = batch_size * num_candidates
  logits = encoder(
    token_BKJ.reshape(flat, joint),
    segment_BKJ.reshape(flat, joint),
    position_BKM.reshape(flat, -1),
    key=key,
  )
  return logits.reshape(batch_size, num_candidates, *logits.shape[1:])


def holds(
  document_BKL: jax.Array,
  target_BM: jax.Array,
  weight_BM: jax.Array,
  sep_id: int,
) -> jax.Array:
  """Whether the body of documents, which is what is read of them, holds what
  is masked, its wordpieces side by side.

  Args:
    document_BKL: token ids, [CLS] title [SEP] body [SEP].
    target_BM: the masked wordpieces, in order; behind them padding.
    weight_BM: 1 where a token is masked, else 0.
    sep_id: id of [SEP].

  Returns:
    bool [B, K]; False where nothing is masked.
  """
  masked_BM = weight_BM > 0
  length, most = document_BKL.shape[2], target_BM.shape[1]
  ahead_BKL = jnp.pad(document_BKL, ((0, 0), (0, 0), (0, most)))
  found_BKL = (document_BKL == sep_id).cumsum(-1) > 0
  for m in range(most):
    found_BKL &= (
      ahead_BKL[:, :, m : m + length] == target_BM[:, None, m, None]
    ) | ~masked_BM[:, None, m, None]
  return found_BKL.any(-1) & masked_BM.any(-1)[:, None]


def most_retrieved_share(row_BK: jax.Array) -> jax.Array:
  """The share of queries that retrieve the block most queries retrieve."""
  row_R = jnp.sort(row_BK.reshape(-1))  # a query has a row once
  if not row_R.size:
    return jnp.zeros(())
  count_R = jnp.searchsorted(row_R, row_R, 'right') - jnp.searchsorted(
    row_R, row_R
  )
  return jnp.where(row_R >= 0, count_R, 0).max() / row_BK.shape[0]


def retrieved_staleness(
  index: Index, row_BK: jax.Array, step: jax.Array
) -> jax.Array:
  """Mean age in steps of the retrieved rows of an index that steps write into.

  Args:
    index: that they were found in.
    row_BK: the rows; -1: none.
    step: that they were retrieved in, from 1.
  """
  made_BK = gather(index.step_N, row_BK)
  there_BK = row_BK >= 0
  age_BK = jnp.where(there_BK, step - made_BK, 0)
  return age_BK.sum() / jnp.maximum(there_BK.sum(), 1)


def _metrics(
  log_prior_BK: jax.Array,
  valid_BK: jax.Array,
  right_BKM: jax.Array,
  weight_BM: jax.Array,
  aux: dict[str, jax.Array],
  trivial_B: jax.Array,
) -> dict[str, Any]:
  prior_BK = jnp.exp(log_prior_BK)
  safe_BK = jnp.where(valid_BK, log_prior_BK, 0.0)
  entropy_B = -(prior_BK * safe_BK).sum(-1)
  log_prob_BK = aux['log_prob_BK']
  best_B = log_prior_BK.argmax(-1)
  right_BM = jnp.take_along_axis(right_BKM, best_B[:, None, None], 1)[:, 0]
  return {
    'retrieval_utility': losses.retrieval_utility(log_prob_BK, valid_BK),
    'marginal_utility': (aux['log_marginal_B'] - log_prob_BK[:, 0]).mean(),
    'null_probability': prior_BK[:, 0].mean(),
    'retrieval_entropy': entropy_B.mean(),
    'trivial_exclusion_rate': trivial_B.mean(),
    'masked_accuracy': losses.Mean(
      (right_BM * weight_BM).sum(), weight_BM.sum()
    ),
  }
