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

  Args:
    config: batch_size, num_candidates, query_length, max_masks, pooling.
    block_length: wordpieces of a block.
    num_rows: N, rows that exact search scores.

  Returns:
    Operations of all devices together; the backward pass counts twice the
    forward one, the search (no gradient) once.
  """
  model = config.model
  size = model.hidden_size
  documents = config.batch_size * (config.num_candidates - 1)
  joint = config.batch_size * config.num_candidates
  forward = (
    bert_flops(model, config.batch_size, config.query_length)
    + bert_flops(model, documents, block_length)
    + bert_flops(model, joint, config.query_length + block_length - 2)
  )
  pooler = size if config.pooling == 'cls' else 0
  embeddings = config.batch_size + documents
  forward += 2 * embeddings * size * (pooler + model.retrieval_size)
  masked = joint * config.max_masks
  forward += 2 * masked * size * (size + model.vocab_size)
  search = 2 * config.batch_size * num_rows * model.retrieval_size
  return 3 * forward + search
