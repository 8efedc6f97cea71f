"""A small model with odd sizes, and texts for it."""

import jax
import numpy as np
import numpy_bert
import pytest
from flax import traverse_util

from realm_jax import config as config_lib
from realm_jax.model import hf_names, parts


@pytest.fixture
def config():
  return config_lib.from_dict(
    {
      'model': {
        'vocab_size': 61,
        'hidden_size': 24,
        'num_layers': 3,
        'num_heads': 4,
        'mlp_size': 40,
        'max_positions': 20,
        'retrieval_size': 7,
        'span_hidden_size': 10,
        'max_span_width': 4,
      }
    }
  )


@pytest.fixture
def text():
  """Tokens [3, 13] with 2, 5 and 13 real, and their segments."""
  rng = np.random.default_rng(3)
  token = rng.integers(5, 61, (3, 13)).astype(np.int32)
  segment = np.zeros_like(token)
  segment[:, 4:] = 1
  for row, length in enumerate((2, 5, 13)):
    token[row, length:] = 0
    segment[row, length:] = 0
  return token, segment


@pytest.fixture
def make():
  """make(name, config, seed) -> parameters, numpy tensors of the BERT in it.

  The heads that BERT has not are random too.
  """

  def make(name, config, seed=0):
    tensors = numpy_bert.random_tensors(config.model, seed)
    params = parts.init_part(name, config, jax.random.key(seed))
    flat = traverse_util.flatten_dict(params)
    groups = hf_names.table(name, '')
    for label in ('backbone', 'pooler', 'mlm_head'):
      for tensor in groups.get(label, []):
        if tensor.path not in flat:  # a pooler where the mean is taken
          continue
        arrays = [tensors[k] for k in tensor.keys(config.model.num_layers)]
        arrays = [x.T if tensor.transposed else x for x in arrays]
        flat[tensor.path] = np.stack(arrays) if tensor.stacked else arrays[0]
    return traverse_util.unflatten_dict(flat), tensors

  return make
