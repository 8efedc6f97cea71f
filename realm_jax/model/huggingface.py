"""Weights in the Hugging Face layout.

One table says where each of their tensors lies in our parameter trees and
whether it is transposed (`Linear.weight` is [out, in], a kernel [in, out]).
Layers are `{i}` in a key and the leading axis of our stacked array.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util

from realm_jax.config import Config
from realm_jax.model import parts


class Tensor(NamedTuple):
  """Where a tensor lies: their key, our path, and is it transposed."""

  key: str
  path: tuple[str, ...]
  transposed: bool = False


def _embedding(key: str, path: str) -> list[Tensor]:
  return [Tensor(f'{key}.weight', (*path.split('/'), 'embedding'))]


def _linear(key: str, path: str) -> list[Tensor]:
  names = tuple(path.split('/'))
  return [
    Tensor(f'{key}.weight', (*names, 'kernel'), transposed=True),
    Tensor(f'{key}.bias', (*names, 'bias')),
  ]


def _norm(key: str, path: str) -> list[Tensor]:
  names = tuple(path.split('/'))
  return [
    Tensor(f'{key}.weight', (*names, 'scale')),
    Tensor(f'{key}.bias', (*names, 'bias')),
  ]


_LAYER = 'encoder.layer.{i}'

# Keys of the backbone stand without its prefix ('bert.', 'realm.', or none).
BACKBONE = [
  *_embedding('embeddings.word_embeddings', 'bert/word'),
  *_embedding('embeddings.position_embeddings', 'bert/position'),
  *_embedding('embeddings.token_type_embeddings', 'bert/segment'),
  *_norm('embeddings.LayerNorm', 'bert/norm'),
  *_linear(f'{_LAYER}.attention.self.query', 'bert/layers/query'),
  *_linear(f'{_LAYER}.attention.self.key', 'bert/layers/key'),
  *_linear(f'{_LAYER}.attention.self.value', 'bert/layers/value'),
  *_linear(f'{_LAYER}.attention.output.dense', 'bert/layers/output'),
  *_norm(f'{_LAYER}.attention.output.LayerNorm', 'bert/layers/attention_norm'),
  *_linear(f'{_LAYER}.intermediate.dense', 'bert/layers/mlp_in'),
  *_linear(f'{_LAYER}.output.dense', 'bert/layers/mlp_out'),
  *_norm(f'{_LAYER}.output.LayerNorm', 'bert/layers/mlp_norm'),
]

# Of the backbone too, but not every checkpoint has one.
POOLER = _linear('pooler.dense', 'pooler')

# Keys of the heads; they carry no backbone prefix.
PROJECTION = [
  *_linear('cls.dense', 'projection'),
  *_norm('cls.LayerNorm', 'norm'),
]
MLM_HEAD = [
  *_linear('cls.predictions.transform.dense', 'transform'),
  *_norm('cls.predictions.transform.LayerNorm', 'norm'),
  Tensor('cls.predictions.bias', ('bias',)),
]
SPAN_HEAD = [
  *_linear('qa_outputs.dense_intermediate', 'span'),
  *_norm('qa_outputs.layer_normalization', 'norm'),
  *_linear('qa_outputs.dense_output', 'output'),
]

# Of a plain BERT, not used here: buffers, the tied decoder, next sentence.
_UNUSED = (
  'embeddings.position_ids',
  'cls.predictions.decoder.weight',
  'cls.predictions.decoder.bias',
  'cls.seq_relationship.weight',
  'cls.seq_relationship.bias',
)

_ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
}

_SIZES = {
  'vocab_size': 'vocab_size',
  'hidden_size': 'hidden_size',
  'num_hidden_layers': 'num_layers',
  'num_attention_heads': 'num_heads',
  'intermediate_size': 'mlp_size',
  'max_position_embeddings': 'max_positions',
}


def read_directory(
  directory: str,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Reads `config.json` and `model.safetensors`.

  Args:
    directory: as `save_pretrained` writes it.

  Returns:
    The Hugging Face configuration, and the tensors by key: floating ones in
    float32, and the layer norms' older names (gamma, beta) made the newer
    (weight, bias).

  Raises:
    ValueError: a file is missing or is not what its name says.
  """
  config_path = os.path.join(directory, 'config.json')
  weights_path = os.path.join(directory, 'model.safetensors')
  for path in (config_path, weights_path):
    if not os.path.isfile(path):
      raise ValueError(
        f'{path}: no such file; a Hugging Face directory has config.json and '
        'model.safetensors'
      )
  try:
    with open(config_path, encoding='utf-8') as file:
      hf_config = json.load(file)
  except ValueError as error:
    raise ValueError(f'{config_path}: not JSON: {error}') from error
  if not isinstance(hf_config, dict):
    raise ValueError(f'{config_path}: expected a JSON object')
  tensors = {}
  try:
    with safetensors.safe_open(weights_path, framework='numpy') as file:
      for key in file.keys():  # noqa: SIM118 (the file is no mapping)
        array = file.get_tensor(key)
        if jnp.issubdtype(array.dtype, jnp.floating):
          array = array.astype(np.float32)
        tensors[_modern(key)] = array
  except safetensors.SafetensorError as error:
    raise ValueError(f'{weights_path}: not safetensors: {error}') from error
  return hf_config, tensors


def bert_model_config(hf_config: Mapping[str, Any]) -> dict[str, Any]:
  """The ModelConfig keys that a BERT configuration decides.

  Sizes, activation and layer norm eps; dropout and initialisation are the
  run's own choice.

  Raises:
    ValueError: a key is missing or asks for what BERT here has not.
  """
  for hf_name in (*_SIZES, 'hidden_act', 'layer_norm_eps'):
    if hf_name not in hf_config:
      raise ValueError(f'config.json: {hf_name} is missing')
  activation = hf_config['hidden_act']
  if activation not in _ACTIVATIONS:
    raise ValueError(
      f'config.json: hidden_act {activation!r}, choose from '
      f'{", ".join(_ACTIVATIONS)}'
    )
  position = hf_config.get('position_embedding_type', 'absolute')
  if position != 'absolute':
    raise ValueError(
      f'config.json: position_embedding_type {position!r}, must be absolute'
    )
  return {
    **{name: hf_config[hf_name] for hf_name, name in _SIZES.items()},
    'activation': _ACTIVATIONS[activation],
    'layer_norm_eps': hf_config['layer_norm_eps'],
  }


def table(name: parts.Part, backbone: str) -> dict[str, list[Tensor]]:
  """Every tensor of a part, by group.

  Args:
    name: 'embedder', 'encoder' or 'reader'.
    backbone: what stands before the keys of the transformer: 'bert.',
      'realm.' or nothing.

  Returns:
    'backbone' and the part's heads. An embedder of pooling 'mean' has no
    'pooler'.
  """

  def prefixed(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor._replace(key=backbone + tensor.key) for tensor in tensors]

  heads = {
    'embedder': {'pooler': prefixed(POOLER), 'projection': PROJECTION},
    'encoder': {'mlm_head': MLM_HEAD},
    'reader': {'span_head': SPAN_HEAD},
  }
  return {'backbone': prefixed(BACKBONE), **heads[name]}


def fill(
  params: dict[str, Any],
  tensors: Mapping[str, np.ndarray],
  group: list[Tensor],
  where: str,
) -> dict[str, Any]:
  """A copy of `params` with the arrays of a group taken from `tensors`.

  Args:
    params: of a part; decides the shapes, the number of layers too.
    tensors: by Hugging Face key.
    group: of `table`.
    where: the directory, for messages.

  Raises:
    ValueError: tensors are missing, misshapen or not floating point.
  """
  flat = traverse_util.flatten_dict(params)
  missing = []
  for tensor in group:
    shape = flat[tensor.path].shape
    stacked = '{i}' in tensor.key
    keys = [tensor.key.format(i=i) for i in range(shape[0] if stacked else 1)]
    shape = shape[1:] if stacked else shape
    missing += [key for key in keys if key not in tensors]
    if missing:
      continue
    arrays = [_checked(tensors, key, tensor, shape, where) for key in keys]
    flat[tensor.path] = np.stack(arrays) if stacked else arrays[0]
  if missing:
    raise ValueError(f'{where}: missing {", ".join(missing)}')
  return traverse_util.unflatten_dict(flat)


def load_bert(
  directory: str,
  config: Config,
  names: Sequence[parts.Part] = ('embedder', 'encoder', 'reader'),
) -> tuple[dict[str, dict[str, Any]], list[str]]:
  """Starts the parts from a plain BERT or a sentence-embedding BERT.

  Args:
    directory: with `config.json` and `model.safetensors`; keys with or
      without 'bert.' before them.
    config: its `model` must agree with the directory's.
    names: the parts wanted.

  Returns:
    The parameters of each part, float32 arrays on the host, and what in them
    starts fresh from `config.seed`: 'encoder/mlm_head' and the like.

  Raises:
    ValueError: the model is of another kind or size than `config` says, or
      tensors are unknown, missing or misshapen.
  """
  hf_config, tensors = read_directory(directory)
  kind = hf_config.get('model_type')
  if kind != 'bert':
    raise ValueError(
      f'{directory}: config.json: model_type {kind!r}, must be bert'
    )
  for name, value in bert_model_config(hf_config).items():
    ours = getattr(config.model, name)
    if ours != value:
      raise ValueError(
        f'model.{name}: {ours}, but the weights in {directory} have {value}'
      )
  word = BACKBONE[0].key
  backbone = 'bert.' if f'bert.{word}' in tensors else ''
  _refuse_unknown(tensors, backbone, config.model.num_layers, directory)
  loaded = {}
  fresh = []
  key = jax.random.key(config.seed)
  for name in names:
    number = get_args(parts.Part).index(name)
    params = parts.init_part(name, config, jax.random.fold_in(key, number))
    params = jax.tree.map(np.asarray, params)
    for label, group in table(name, backbone).items():
      if label == 'pooler' and config.pooling != 'cls':
        continue
      if label == 'backbone' or any(t.key in tensors for t in group):
        params = fill(params, tensors, group, directory)
      else:
        fresh.append(f'{name}/{label}')
    loaded[name] = params
  return loaded, fresh


def _checked(
  tensors: Mapping[str, np.ndarray],
  key: str,
  tensor: Tensor,
  shape: tuple[int, ...],
  where: str,
) -> np.ndarray:
  array = tensors[key]
  theirs = shape[::-1] if tensor.transposed else shape
  if array.shape != theirs:
    raise ValueError(f'{where}: {key}: shape {array.shape}, must be {theirs}')
  if array.dtype != np.float32:
    raise ValueError(f'{where}: {key}: {array.dtype}, must be floating point')
  return np.ascontiguousarray(array.T) if tensor.transposed else array


def _refuse_unknown(
  tensors: Mapping[str, np.ndarray],
  backbone: str,
  num_layers: int,
  where: str,
) -> None:
  known = {backbone + key for key in _UNUSED} | set(_UNUSED)
  known |= {tensor.key for tensor in MLM_HEAD}
  known |= {
    backbone + tensor.key.format(i=i)
    for tensor in (*BACKBONE, *POOLER)
    for i in range(num_layers)
  }
  unknown = sorted(set(tensors) - known)
  if unknown:
    raise ValueError(f'{where}: unknown tensors {", ".join(unknown)}')


def _modern(key: str) -> str:
  for old, new in (('.gamma', '.weight'), ('.beta', '.bias')):
    if key.endswith(f'LayerNorm{old}'):
      return key.removesuffix(old) + new
  return key
