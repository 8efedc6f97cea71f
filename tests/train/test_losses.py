"""Losses against ten-line numpy references, and the paper's gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realm_jax.train import losses


def _log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _example(seed=0, batch=3, k=4, masks=5):
  rng = np.random.default_rng(seed)
  score_BK = rng.normal(size=(batch, k)).astype(np.float32)
  valid_BK = np.ones((batch, k), bool)
  valid_BK[0, 2:] = False
  token_BKM = -rng.random((batch, k, masks)).astype(np.float32) * 3
  weight_BM = (np.arange(masks) < np.array([[5], [2], [3]])).astype(np.float32)
  return score_BK, valid_BK, token_BKM, weight_BM


def _marginal_loss(prior_BK, token_BKM, weight_BM, kind):
  total = losses.marginal_count(weight_BM, kind)
  return losses.marginal_loss(prior_BK, token_BKM, weight_BM, total, kind)


def test_sequence_marginal_equals_reference():
  score_BK, valid_BK, token_BKM, weight_BM = _example()
  total = 0.0
  for b in range(3):
    z = np.flatnonzero(valid_BK[b])
    prior = np.exp(_log_softmax(score_BK[b, z]))
    likelihood = np.exp((token_BKM[b, z] * weight_BM[b]).sum(-1))
    total -= np.log((prior * likelihood).sum())
  prior_BK = losses.masked_log_softmax(score_BK, valid_BK)
  loss, _ = _marginal_loss(prior_BK, token_BKM, weight_BM, 'sequence')
  np.testing.assert_allclose(loss, total / 3, rtol=1e-5)


def test_token_marginal_equals_reference():
  score_BK, valid_BK, token_BKM, weight_BM = _example()
  total = 0.0
  for b in range(3):
    z = np.flatnonzero(valid_BK[b])
    prior = np.exp(_log_softmax(score_BK[b, z]))
    for j in np.flatnonzero(weight_BM[b]):
      total -= np.log((prior * np.exp(token_BKM[b, z, j])).sum())
  prior_BK = losses.masked_log_softmax(score_BK, valid_BK)
  loss, _ = _marginal_loss(prior_BK, token_BKM, weight_BM, 'token')
  np.testing.assert_allclose(loss, total / weight_BM.sum(), rtol=1e-5)


def test_gradient_on_the_retrieval_score_is_the_papers():
  """Section 3.3: d log p(y|x) / d f = [p(y|z,x) / p(y|x) - 1] p(z|x)."""
  score_BK, valid_BK, token_BKM, weight_BM = _example(1)

  def log_marginal(score_BK):
    prior_BK = losses.masked_log_softmax(score_BK, valid_BK)
    loss, _ = _marginal_loss(prior_BK, token_BKM, weight_BM, 'sequence')
    return -loss * 3  # a mean over three examples

  grad_BK = jax.grad(log_marginal)(jnp.asarray(score_BK))
  for b in range(3):
    z = np.flatnonzero(valid_BK[b])
    prior = np.exp(_log_softmax(score_BK[b, z]))
    likelihood = np.exp((token_BKM[b, z] * weight_BM[b]).sum(-1))
    marginal = (prior * likelihood).sum()
    want = (likelihood / marginal - 1) * prior
    np.testing.assert_allclose(grad_BK[b, z], want, atol=1e-6)
    assert not np.asarray(grad_BK[b, ~valid_BK[b]]).any()


def test_retrieval_utility_counts_retrieved_candidates_only():
  log_prob_BK = jnp.array([[-3.0, -1.0, -9.0], [-2.0, -2.5, -1.0]])
  valid_BK = jnp.array([[True, True, False], [True, True, True]])
  utility = losses.retrieval_utility(log_prob_BK, valid_BK)
  np.testing.assert_allclose(utility.value(), (2.0 - 0.5 + 1.0) / 3, rtol=1e-6)


def test_ict_loss_equals_reference():
  rng = np.random.default_rng(0)
  query, block = rng.normal(size=(2, 6, 4)).astype(np.float32)
  log_prob = _log_softmax(query @ block.T / 2)
  loss, metrics = losses.ict_loss(query, block, 2.0)
  np.testing.assert_allclose(loss, -np.diag(log_prob).mean(), rtol=1e-5)
  right = (log_prob.argmax(1) == np.arange(6)).mean()
  np.testing.assert_allclose(metrics['ict_accuracy'], right)


def test_question_losses_equal_reference():
  rng = np.random.default_rng(0)
  score_BK = rng.normal(size=(2, 6)).astype(np.float32)
  valid_BK = np.ones((2, 6), bool)
  valid_BK[:, 5] = False
  gold_BK = np.zeros((2, 6), bool)
  gold_BK[0, [1, 3, 5]] = True  # place 5 is empty: no gold there
  loss_B, has_B = losses.retriever_loss(score_BK, valid_BK, gold_BK)
  log_prob_K = _log_softmax(score_BK[0, :5])
  want = -np.log(np.exp(log_prob_K[[1, 3]]).sum())
  np.testing.assert_allclose(loss_B, [want, 0.0], rtol=1e-5)
  np.testing.assert_array_equal(has_B, [True, False])

  span = rng.normal(size=(1, 2, 5, 3)).astype(np.float32)
  valid = rng.random((1, 2, 5, 3)) > 0.3
  gold = valid & (rng.random((1, 2, 5, 3)) > 0.7)
  loss_B, has_B = losses.reader_loss(span, valid, gold)
  want = np.log(np.exp(span[valid]).sum()) - np.log(np.exp(span[gold]).sum())
  np.testing.assert_allclose(loss_B, [want], rtol=1e-5)
  assert has_B[0]


@pytest.mark.parametrize('kind', ['sequence', 'token'])
def test_no_candidate_but_null_has_finite_gradients(kind):
  score_BK, _, token_BKM, weight_BM = _example()
  valid_BK = np.zeros((3, 4), bool)
  valid_BK[:, 0] = True

  def loss_fn(score_BK, token_BKM):
    prior_BK = losses.masked_log_softmax(score_BK, valid_BK)
    return _marginal_loss(prior_BK, token_BKM, weight_BM, kind)[0]

  grads = jax.grad(loss_fn, (0, 1))(jnp.asarray(score_BK), token_BKM)
  assert all(np.isfinite(g).all() for g in grads)
