"""Weights read from a directory compute what numpy computes with them."""

import json
import sys

import jax
import ml_dtypes
import numpy as np
import numpy_bert
import pytest
from safetensors.numpy import save_file

from realm_jax import config as config_lib
from realm_jax.model import hf_files, hf_names, huggingface, parts

WORD = 'embeddings.word_embeddings.weight'


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


def load(directory, config):
  with hf_files.open_weights(directory) as weights:
    return huggingface.load(weights, config)


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
  loaded = load(write(tmp_path, config, stored), config)
  assert loaded.fresh == ['document_embedder/projection']
  assert set(loaded.params) == {'document_embedder', 'encoder'}
  x = numpy_bert.hidden(tensors, config.model, text[0][1], text[1][1])
  for part, name in (('embedder', 'document_embedder'), ('encoder',) * 2):
    hidden = parts.bind(part, config, loaded.params[name]).bert(*text)
    np.testing.assert_allclose(hidden[1], x, atol=2e-5)
  encoder = parts.bind('encoder', config, loaded.params['encoder'])
  np.testing.assert_allclose(
    encoder(*text, np.array([[0, 1], [2, 4], [0, 0]]))[1],
    numpy_bert.mlm_logits(tensors, config.model, x[[2, 4]]),
    atol=1e-4,
  )
  pooler = loaded.params['document_embedder']['pooler']
  np.testing.assert_array_equal(
    pooler['kernel'].T, tensors['pooler.dense.weight']
  )


def test_what_is_absent_starts_fresh_and_is_named(tmp_path, config):
  tensors = numpy_bert.random_tensors(config.model, head=False, pooler=False)
  directory = write(tmp_path, config, tensors)
  loaded = load(directory, config)
  assert loaded.fresh == [
    'document_embedder/pooler',
    'document_embedder/projection',
    'encoder/mlm_head',
  ]
  np.testing.assert_array_equal(
    load(directory, config).params['encoder']['transform']['kernel'],
    loaded.params['encoder']['transform']['kernel'],
  )
  mean = config_lib.replace(config, pooling='mean')
  assert load(directory, mean).fresh == [
    'document_embedder/projection',
    'encoder/mlm_head',
  ]


@pytest.mark.parametrize('size', [7, 24, 40])
def test_a_fresh_projection_keeps_angles(tmp_path, config, size):
  tensors = numpy_bert.random_tensors(config.model)
  directory = write(tmp_path, config, tensors)
  config = config_lib.replace(config, model={'retrieval_size': size})
  params = load(directory, config).params['document_embedder']
  kernel = params['projection']['kernel']
  inner = min(kernel @ kernel.T, kernel.T @ kernel, key=np.size)
  np.testing.assert_allclose(inner / inner[0, 0], np.eye(len(inner)), atol=1e-5)
  # Of BERT's own size, so that learning rates mean the same.
  rms = np.sqrt((kernel**2).mean())
  np.testing.assert_allclose(rms, config.model.initializer_range, rtol=1e-5)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_converted(tmp_path, config, dtype):
  tensors = numpy_bert.random_tensors(config.model)
  stored = {key: array.astype(dtype) for key, array in tensors.items()}
  loaded = load(write(tmp_path, config, stored), config)
  word = loaded.params['encoder']['bert']['word']['embedding']
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
    ({'model_type': 'gpt2'}, r"model_type 'gpt2', must be bert or realm"),
    ({'position_embedding_type': 'relative_key'}, 'must be absolute'),
    ({'type_vocab_size': 1}, 'type_vocab_size 1, must be 2'),
  ],
)
def test_another_model_is_refused(tmp_path, config, changes, message):
  tensors = numpy_bert.random_tensors(config.model)
  directory = write(tmp_path, config, tensors, **changes)
  with pytest.raises(ValueError, match=message):
    load(directory, config)


def test_tensors_that_do_not_fit_are_refused(tmp_path, config):
  tensors = numpy_bert.random_tensors(config.model)
  key = 'encoder.layer.1.output.dense.bias'

  def message(**changes):
    changed = {k: a for k, a in (tensors | changes).items() if a is not None}
    directory = write(tmp_path, config, changed)
    with pytest.raises(ValueError) as error:
      load(directory, config)
    assert '\n' not in str(error.value)
    return str(error.value)

  assert f'missing: {key}' in message(**{key: None})
  assert f'misshapen: {key} [5] (must be [24])' in message(
    **{key: np.zeros(5, np.float32)}
  )
  for dtype in ('int64', 'float64'):
    said = message(**{key: np.zeros(24, dtype)})
    assert f'{key}: {dtype}, must be one of float32' in said
  extra = {'encoder.layer.3.output.dense.bias': np.zeros(24, np.float32)}
  assert f'unknown: {next(iter(extra))}' in message(**extra)
  # All that is wrong is said at once.
  said = message(**extra, **{key: None})
  assert f'missing: {key}; unknown: {next(iter(extra))}' in said
  # Half a head is no head that starts fresh.
  assert 'missing: cls.predictions.bias' in message(
    **{'cls.predictions.bias': None}
  )
  untied = {'cls.predictions.decoder.weight': np.ones((61, 24), np.float32)}
  assert 'decoder.weight differs from embeddings.word' in message(**untied)


def test_broken_directories_are_refused(tmp_path, config):
  with pytest.raises(ValueError, match=r'config\.json: no such file'):
    load(str(tmp_path), config)
  tensors = numpy_bert.random_tensors(config.model)
  directory = write(tmp_path, config, tensors)
  weights = tmp_path / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-10])
  with pytest.raises(ValueError, match=r'model\.safetensors: not safetensors'):
    load(directory, config)
  weights.rename(tmp_path / 'other.safetensors')
  with pytest.raises(ValueError, match=r'no weights; expected model\.safeten'):
    load(directory, config)
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match=r'config\.json: not JSON'):
    load(directory, config)
  write(tmp_path, config, tensors)
  (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
  with pytest.raises(ValueError, match='vocab_size is missing'):
    load(directory, config)


def test_shards_and_their_index(tmp_path, config):
  tensors = prefixed(numpy_bert.random_tensors(config.model))
  whole = load(write(tmp_path, config, tensors), config)
  (tmp_path / 'model.safetensors').unlink()
  keys = sorted(tensors)
  shards = {'a.safetensors': keys[:9], 'b.safetensors': keys[9:]}
  for name, part in shards.items():
    save_file({key: tensors[key] for key in part}, tmp_path / name)
  index = tmp_path / 'model.safetensors.index.json'
  places = {key: name for name, part in shards.items() for key in part}
  index.write_text(json.dumps({'weight_map': places}))
  sharded = load(str(tmp_path), config)
  jax.tree.map(np.testing.assert_array_equal, sharded.params, whole.params)
  places['of.no.shard'] = 'a.safetensors'
  index.write_text(json.dumps({'weight_map': places}))
  with pytest.raises(ValueError, match=r'no shard has of\.no\.shard'):
    load(str(tmp_path), config)
  (tmp_path / 'b.safetensors').unlink()
  with pytest.raises(ValueError, match=r'b\.safetensors: no such file'):
    load(str(tmp_path), config)


@pytest.mark.parametrize(
  ('file', 'library'),
  [('pytorch_model.bin', 'torch'), ('model.ckpt.index', 'tensorflow')],
)
def test_an_absent_library_is_named(
  tmp_path, config, monkeypatch, file, library
):
  monkeypatch.setitem(sys.modules, library, None)
  directory = write(tmp_path, config, numpy_bert.random_tensors(config.model))
  (tmp_path / 'model.safetensors').rename(tmp_path / file)
  with pytest.raises(ValueError, match=f'needs {library} to be read: pip in'):
    load(directory, config)


def test_several_checkpoints_of_tensorflow_are_refused(tmp_path, config):
  directory = write(tmp_path, config, numpy_bert.random_tensors(config.model))
  (tmp_path / 'model.safetensors').unlink()
  for step in (0, 100, 20):
    (tmp_path / f'model.ckpt-{step}.index').touch()
  with pytest.raises(ValueError, match=r'several .* model\.ckpt-100\.index'):
    load(directory, config)


def test_names_of_tensorflow():
  names = {
    'bert/embeddings/word_embeddings': (f'{WORD}', False),
    'bert/embeddings/LayerNorm/gamma': ('embeddings.LayerNorm.weight', False),
    'bert/encoder/layer_1/attention/self/query/kernel': (
      'encoder.layer.1.attention.self.query.weight',
      True,
    ),
    'bert/pooler/dense/bias': ('pooler.dense.bias', False),
    'cls/predictions/output_bias': ('cls.predictions.bias', False),
    'cls/predictions/transform/dense/kernel': (
      'cls.predictions.transform.dense.weight',
      True,
    ),
    'cls/seq_relationship/output_weights': (
      'cls.seq_relationship.weight',
      False,
    ),
    'unheard/of': ('unheard.of', False),
  }

  def mapped(names, realm):
    found = hf_names.from_tensorflow(names, realm)
    return {name: (key, turned) for name, key, turned in found}

  def backboned(prefix):
    return {
      name: (prefix + key if name.startswith('bert/') else key, turned)
      for name, (key, turned) in names.items()
    }

  slots = ['bert/pooler/dense/bias/adam_m', 'global_step']
  assert mapped([*names, *slots], realm=False) == backboned('bert.')
  assert mapped(names, realm=True) == backboned('realm.')
  # An embedder as it was pre-trained, and a module deeper as fine-tuned.
  for before in ('module/module/', 'module/module/module/'):
    assert mapped(
      [
        f'{before}dense/kernel',
        f'{before}LayerNorm/beta',
        f'{before}module/bert/pooler/dense/bias',
        f'{before}module/cls/predictions/output_bias',
      ],
      realm=True,
    ) == {
      f'{before}dense/kernel': ('cls.dense.weight', True),
      f'{before}LayerNorm/beta': ('cls.LayerNorm.bias', False),
      f'{before}module/bert/pooler/dense/bias': (
        'realm.pooler.dense.bias',
        False,
      ),
      f'{before}module/cls/predictions/output_bias': (
        'cls.predictions.bias',
        False,
      ),
    }
  # Reader and query embedder in one checkpoint: open QA.
  both = mapped(
    [
      'module/module/module/dense/bias',
      'module/module/module/module/bert/pooler/dense/bias',
      'reader/module/bert/pooler/dense/bias',
      'reader/dense/kernel',
      'reader/dense_1/bias',
      'reader/layer_normalization/gamma',
      'block_emb',
    ],
    realm=True,
  )
  assert [key for key, _ in both.values()] == [
    'embedder.cls.dense.bias',
    'embedder.realm.pooler.dense.bias',
    'reader.realm.pooler.dense.bias',
    'reader.qa_outputs.dense_intermediate.weight',
    'reader.qa_outputs.dense_output.bias',
    'reader.qa_outputs.layer_normalization.weight',
    'block_emb',
  ]
