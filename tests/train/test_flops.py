"""Operations counted by hand, against those that XLA counts."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from realm_jax import config as config_lib
from realm_jax.model import bert
from realm_jax.train.flops import bert_flops, pretrain_flops


def test_one_layer_is_what_xla_counts():
  # One layer: XLA counts the body of a loop once. Large, so that what is not
  # a product of matrices hardly counts.
  model = config_lib.ModelConfig(
    vocab_size=100,
    hidden_size=256,
    num_layers=1,
    num_heads=4,
    mlp_size=1024,
  )
  module = bert.Bert(model, nnx.Rngs(0))
  graphdef, state = nnx.split(module)

  def run(state, token_BL):
    return nnx.merge(graphdef, state)(token_BL, jnp.zeros_like(token_BL))

  token_BL = jnp.ones((2, 64), jnp.int32)
  compiled = jax.jit(run).lower(state, token_BL).compile()
  counted = compiled.cost_analysis()['flops']
  assert bert_flops(model, 2, 64) == pytest.approx(counted, rel=0.1)


def test_the_papers_step():
  """A step of batch 512 costs some 1.5e15 operations."""
  config = config_lib.from_dict({'batch_size': 512})
  assert pretrain_flops(config, 288, 13_353_718) == pytest.approx(
    1.5e15, rel=0.1
  )
