"""Floating-point operations of the model, as its equations have them.

Products of matrices alone, two operations a multiplication and addition, with
no recomputation: what a device must do, not what a program happens to do. Texts
count at their padded lengths, the null document too, which is read beside the
others: its padding is 5.6% of a step at the paper's sizes.
"""

from realm_jax.config import Config, ModelConfig


def bert_flops(model: ModelConfig, texts: int, length: int) -> int:
  """One pass over `texts` texts of `length` wordpieces, without heads."""
  size, mlp = model.hidden_size, model.mlp_size
  projections = 4 * size * size + 2 * size * mlp
  attention = 2 * length * size  # scores, and the weighted sum of values
  return 2 * texts * length * model.num_layers * (projections + attention)


def pretrain_flops(config: Config, block_length: int, num_rows: int) -> int:
  """A pre-training step over the global batch: forward, backward, search.

  And what it renews of the index (renew.py).

  Args:
    config: of the run.
    block_length: wordpieces of a block.
    num_rows: N, rows that exact search scores.

  Returns:
    Operations of all devices together; the backward pass counts twice the
    forward one, search and renewal (no gradient) once.
  """
  model = config.model
  size = model.hidden_size
  documents = config.batch_size * (config.num_candidates - 1)
  joint = config.batch_size * config.num_candidates
  pooler = size if config.pooling == 'cls' else 0
  head = 2 * size * (pooler + model.retrieval_size)
  forward = (
    bert_flops(model, config.batch_size, config.query_length)
    + bert_flops(model, documents, block_length)
    + bert_flops(model, joint, config.query_length + block_length - 2)
  )
  forward += (config.batch_size + documents) * head
  masked = joint * config.max_masks
  forward += 2 * masked * size * (size + model.vocab_size)
  search = 2 * config.batch_size * num_rows * model.retrieval_size
  rows = _renewed_rows(config)
  renewal = bert_flops(model, rows, block_length) + rows * head
  return 3 * forward + search + renewal


def _renewed_rows(config: Config) -> int:
  """Rows of the index that a step embeds for the index alone."""
  refresh, rows = config.refresh, 0
  if refresh.where == 'rolling':
    rows += refresh.rows_per_step
  if refresh.write_back and config.model.dropout:  # else the loss has them
    rows += config.batch_size * (config.num_candidates - 1)
  return rows + refresh.priority_rows
