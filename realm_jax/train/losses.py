"""The objectives, as pure functions of scores."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

_NEG_INF = -jnp.inf


class Mean(NamedTuple):
  """A metric: what is counted, added up, and how many there are.

  Parts of a batch have different numbers of them: totals and counts of the
  parts add up to those of the batch, means do not.
  """

  total: jax.Array
  count: jax.Array

  def value(self) -> jax.Array:
    """The mean; 0 of nothing."""
    return self.total / jnp.maximum(self.count, 1)


def masked_log_softmax(score_BK: jax.Array, valid_BK: jax.Array) -> jax.Array:
  """Log-softmax over the valid places of each row; -inf elsewhere.

  A row with no valid place is -inf throughout, and its gradient is zero.
  """
  # Finite stand-ins inside, -inf outside: a gradient through -inf is NaN.
  low = jnp.finfo(score_BK.dtype).min / 2
  score_BK = jnp.where(valid_BK, score_BK, low)
  log_prob_BK = jax.nn.log_softmax(score_BK, axis=-1)
  return jnp.where(valid_BK, log_prob_BK, _NEG_INF)


def masked_logsumexp(
  score: jax.Array, valid: jax.Array, axis: int | tuple[int, ...] = -1
) -> jax.Array:
  """Logsumexp over valid places; the lowest finite number where none is."""
  low = jnp.finfo(score.dtype).min / 2
  return jax.nn.logsumexp(jnp.where(valid, score, low), axis=axis)


def token_log_probs(logits_BMV: jax.Array, target_BM: jax.Array) -> jax.Array:
  """log p(y_j) of each masked position, [B, M]."""
  chosen_BM = jnp.take_along_axis(logits_BMV, target_BM[..., None], -1)[..., 0]
  return chosen_BM - jax.nn.logsumexp(logits_BMV, axis=-1)


def marginal_count(
  weight_BM: jax.Array, kind: Literal['sequence', 'token']
) -> jax.Array:
  """What `marginal_loss` is the mean over: examples or masked tokens, >= 1."""
  weight_B = weight_BM.sum(-1)
  counted_B = weight_B > 0 if kind == 'sequence' else weight_B
  return jnp.maximum(counted_B.sum(), 1)


def marginal_loss(
  candidate_log_prob_BK: jax.Array,
  token_log_prob_BKM: jax.Array,
  weight_BM: jax.Array,
  total: jax.Array,
  kind: Literal['sequence', 'token'],
) -> tuple[jax.Array, dict[str, Any]]:
  """Negative log marginal likelihood of the masked tokens.

  `sequence` is the paper's (equation 1): -log sum_z p(z|x) prod_j p(y_j|z,x),
  the mean over examples. `token` is the release's:
  -sum_j log sum_z p(z|x) p(y_j|z,x), the mean over masked tokens.

  Args:
    candidate_log_prob_BK: log p(z|x); -inf for places without a candidate.
      Candidate 0 is the null document.
    token_log_prob_BKM: log p(y_j|z,x).
    weight_BM: 1 where a token is masked, else 0.
    total: `marginal_count` of the global batch.
    kind: which marginal.

  Returns:
    The loss, this batch's share of that of the global batch; and metrics:
    `log_prob_BK`, log p(y|z,x), and `log_marginal_B`, log p(y|x).
  """
  valid_BK = candidate_log_prob_BK > _NEG_INF
  prior_BK = jnp.where(valid_BK, candidate_log_prob_BK, 0.0)
  token_log_prob_BKM = token_log_prob_BKM * weight_BM[:, None, :]
  log_prob_BK = token_log_prob_BKM.sum(-1)
  log_marginal_B = masked_logsumexp(prior_BK + log_prob_BK, valid_BK)
  if kind == 'sequence':
    loss = -jnp.where(weight_BM.sum(-1) > 0, log_marginal_B, 0.0).sum() / total
  else:
    token_marginal_BM = masked_logsumexp(
      prior_BK[:, :, None] + token_log_prob_BKM, valid_BK[:, :, None], axis=1
    )
    loss = -(token_marginal_BM * weight_BM).sum() / total
  return loss, {'log_prob_BK': log_prob_BK, 'log_marginal_B': log_marginal_B}


def retrieval_utility(log_prob_BK: jax.Array, valid_BK: jax.Array) -> Mean:
  """Mean over retrieved z of log p(y|z,x) - log p(y|null,x) (paper 4.2).

  Args:
    log_prob_BK: log p(y|z,x), candidate 0 the null document.
    valid_BK: which places hold a candidate that counts.

  Returns:
    In nats; positive when retrieved passages help, 0 without any.
  """
  retrieved_BK = valid_BK[:, 1:].astype(jnp.float32)
  gain_BK = (log_prob_BK[:, 1:] - log_prob_BK[:, :1]) * retrieved_BK
  return Mean(gain_BK.sum(), retrieved_BK.sum())


def ict_loss(
  query_BE: jax.Array, block_BE: jax.Array, temperature: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Inverse cloze: each sentence against all blocks of the global batch.

  Under jit over a mesh B is global: negatives, and their gradients, cross
  devices (ORQA section 5).

  Returns:
    Mean cross-entropy, and the in-batch `ict_accuracy`.
  """
  score_BC = jnp.einsum('BE,CE->BC', query_BE, block_BE) / temperature
  target_B = jnp.arange(score_BC.shape[0])
  log_prob_BC = jax.nn.log_softmax(score_BC, axis=-1)
  own_B = jnp.take_along_axis(log_prob_BC, target_B[:, None], 1)[:, 0]
  accuracy = (score_BC.argmax(-1) == target_B).mean()
  return -own_B.mean(), {'ict_accuracy': accuracy}


def retriever_loss(
  score_BK: jax.Array, valid_BK: jax.Array, gold_BK: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """L_retr = lse_k s_k - lse over the blocks that hold an answer (ORQA 4).

  Returns:
    loss_B, zero where no block holds an answer, and has_gold_B.
  """
  gold_BK = gold_BK & valid_BK
  has_gold_B = gold_BK.any(-1)
  loss_B = masked_logsumexp(score_BK, valid_BK) - masked_logsumexp(
    score_BK, gold_BK
  )
  return jnp.where(has_gold_B, loss_B, 0.0), has_gold_B


def reader_loss(
  score_BRJW: jax.Array, valid_BRJW: jax.Array, gold_BRJW: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """L_read: one softmax over all blocks and spans, gold ones summed (ORQA 4).

  Args:
    score_BRJW: span score plus retriever logit, R blocks read, J positions, W
      widths.
    valid_BRJW: spans inside a block's body.
    gold_BRJW: spans that are an answer.

  Returns:
    loss_B, zero where no gold span was read, and has_gold_B.
  """
  gold_BRJW = gold_BRJW & valid_BRJW
  axes = (1, 2, 3)
  has_gold_B = gold_BRJW.any(axes)
  loss_B = masked_logsumexp(score_BRJW, valid_BRJW, axes) - masked_logsumexp(
    score_BRJW, gold_BRJW, axes
  )
  return jnp.where(has_gold_B, loss_B, 0.0), has_gold_B
