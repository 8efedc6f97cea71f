"""Weights read from a directory compute what numpy computes with them."""

import json

import ml_dtypes
import numpy as np
import numpy_bert
import pytest
from safetensors.numpy import save_file

from realm_jax import config as config_lib
from realm_jax.model import huggingface, parts


def hf_config(config, **changes):
  model = config.model
  return {
    'model_type': 'bert',
    'vocab_size': model.vocab_size,
    'hidden_size': model.hidden_size,
    'num_hidden_layers': model.num_layers,
    'num_attention_heads': model.num_heads,
    'intermediate_size': model.mlp_size,
    'max_position_embeddings': model.max_positions,
    'hidden_act': 'gelu_new',
    'layer_norm_eps': 1e-12,
    **changes,
  }


def prefixed(tensors, prefix='bert.'):
  return {
    key if key.startswith('cls.') else prefix + key: array
    for key, array in tensors.items()
  }


def write(directory, config, tensors, **changes):
  (directory / 'config.json').write_text(
    json.dumps(hf_config(config, **changes))
  )
  save_file(tensors, directory / 'model.safetensors')
  return str(directory)


@pytest.mark.parametrize('form', ['modern', 'old_names', 'no_prefix'])
def test_all_parts_compute_with_the_weights(tmp_path, config, text, form):
  tensors = numpy_bert.random_tensors(config.model)
  stored = prefixed(tensors, '' if form == 'no_prefix' else 'bert.')
  if form == 'old_names':
    stored = {
      key.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
        'LayerNorm.bias', 'LayerNorm.beta'
      ): array
      for key, array in stored.items()
    }
    stored['bert.embeddings.position_ids'] = np.arange(20)[None]
    stored['cls.seq_relationship.bias'] = np.zeros(2, np.float32)
  directory = write(tmp_path, config, stored)
  loaded, fresh = huggingface.load_bert(directory, config)
  assert fresh == ['embedder/projection', 'reader/span_head']
  assert set(loaded) == {'embedder', 'encoder', 'reader'}
  x = numpy_bert.hidden(tensors, config.model, text[0][1], text[1][1])
  for name, params in loaded.items():
    hidden = parts.bind(name, config, params).bert(*text)
    np.testing.assert_allclose(hidden[1], x, atol=2e-5)
  encoder = parts.bind('encoder', config, loaded['encoder'])
  np.testing.assert_allclose(
    encoder(*text, np.array([[0, 1], [2, 4], [0, 0]]))[1],
    numpy_bert.mlm_logits(tensors, config.model, x[[2, 4]]),
    atol=1e-4,
  )
  pooler = loaded['embedder']['pooler']
  np.testing.assert_array_equal(
    pooler['kernel'].T, tensors['pooler.dense.weight']
  )


def test_what_is_absent_starts_fresh_and_is_named(tmp_path, config):
  tensors = numpy_bert.random_tensors(config.model, head=False, pooler=False)
  directory = write(tmp_path, config, tensors)
  loaded, fresh = huggingface.load_bert(directory, config)
  assert fresh == [
    'embedder/pooler',
    'embedder/projection',
    'encoder/mlm_head',
    'reader/span_head',
  ]
  again, _ = huggingface.load_bert(directory, config, ['encoder'])
  np.testing.assert_array_equal(
    again['encoder']['transform']['kernel'],
    loaded['encoder']['transform']['kernel'],
  )
  mean = config_lib.replace(config, pooling='mean')
  _, fresh = huggingface.load_bert(directory, mean, ['embedder'])
  assert fresh == ['embedder/projection']


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_converted(tmp_path, config, dtype):
  tensors = numpy_bert.random_tensors(config.model)
  stored = {key: array.astype(dtype) for key, array in tensors.items()}
  loaded, _ = huggingface.load_bert(write(tmp_path, config, stored), config)
  word = loaded['encoder']['bert']['word']['embedding']
  key = 'embeddings.word_embeddings.weight'
  assert word.dtype == np.float32
  np.testing.assert_array_equal(word, stored[key].astype(np.float32))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'hidden_size': 32}, r'model\.hidden_size: 24, but .* have 32'),
    ({'vocab_size': 99}, r'model\.vocab_size: 61, but .* have 99'),
    ({'hidden_act': 'gelu'}, r'model\.activation: gelu_tanh, but .* gelu'),
    ({'hidden_act': 'relu'}, r"hidden_act 'relu', choose from gelu"),
    ({'model_type': 'gpt2'}, r"model_type 'gpt2', must be bert"),
    ({'position_embedding_type': 'relative_key'}, 'must be absolute'),
  ],
)
def test_another_model_is_refused(tmp_path, config, changes, message):
  tensors = numpy_bert.random_tensors(config.model)
  directory = write(tmp_path, config, tensors, **changes)
  with pytest.raises(ValueError, match=message):
    huggingface.load_bert(directory, config)


def test_tensors_that_do_not_fit_are_refused(tmp_path, config):
  tensors = numpy_bert.random_tensors(config.model)
  key = 'encoder.layer.1.output.dense.bias'

  def message(**changes):
    changed = {k: a for k, a in (tensors | changes).items() if a is not None}
    directory = write(tmp_path, config, changed)
    with pytest.raises(ValueError) as error:
      huggingface.load_bert(directory, config)
    assert '\n' not in str(error.value)
    return str(error.value)

  assert f'missing {key}' in message(**{key: None})
  assert f'{key}: shape (5,), must be (24,)' in message(
    **{key: np.zeros(5, np.float32)}
  )
  assert f'{key}: int64, must be floating' in message(
    **{key: np.zeros(24, np.int64)}
  )
  extra = {'encoder.layer.3.output.dense.bias': np.zeros(24, np.float32)}
  assert 'unknown tensors encoder.layer.3' in message(**extra)
  # Half a head is no head that starts fresh.
  assert 'missing cls.predictions.bias' in message(
    **{'cls.predictions.bias': None}
  )


def test_broken_directories_are_refused(tmp_path, config):
  with pytest.raises(ValueError, match=r'config\.json: no such file'):
    huggingface.read_directory(str(tmp_path))
  tensors = numpy_bert.random_tensors(config.model)
  directory = write(tmp_path, config, tensors)
  weights = tmp_path / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-10])
  with pytest.raises(ValueError, match=r'model\.safetensors: not safetensors'):
    huggingface.read_directory(directory)
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match=r'config\.json: not JSON'):
    huggingface.read_directory(directory)
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(ValueError, match='vocab_size is missing'):
    huggingface.bert_model_config({})
