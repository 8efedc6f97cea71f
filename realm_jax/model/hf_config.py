"""config.json of the Hugging Face layout, to our configuration and back."""

from typing import Any

from realm_jax.config import Config
from realm_jax.model import hf_names
from realm_jax.model.hf_files import Weights

_ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
}
_BERT_SIZES = {
  'vocab_size': 'vocab_size',
  'hidden_size': 'hidden_size',
  'num_hidden_layers': 'num_layers',
  'num_attention_heads': 'num_heads',
  'intermediate_size': 'mlp_size',
  'max_position_embeddings': 'max_positions',
  'layer_norm_eps': 'layer_norm_eps',
}
_REALM_SIZES = {
  'retriever_proj_size': 'retrieval_size',
  'span_hidden_size': 'span_hidden_size',
  'max_span_width': 'max_span_width',
  'reader_layer_norm_eps': 'reader_eps',
}
_REALM_KEYS = {
  'num_candidates': 'num_candidates',
  'reader_beam_size': 'reader_beam',
  'searcher_beam_size': 'retriever_beam',
  'reader_seq_len': 'reader_length',
}


def kind(weights: Weights) -> str:
  """Which class a directory holds: 'bert' or one of hf_names.KINDS.

  Raises:
    ValueError: model_type is neither bert nor realm, or the configuration
      says one class and the tensors are of another.
  """
  model_type = weights.config.get('model_type')
  if model_type not in ('bert', 'realm'):
    raise ValueError(
      f'{weights.path}: config.json: model_type {model_type!r}, must be bert '
      'or realm'
    )
  found = hf_names.kind_of(set(weights.entries))
  if (found == 'bert') != (model_type == 'bert'):
    raise ValueError(
      f'{weights.path}: config.json: model_type is {model_type!r}, but the '
      f'tensors are those of {"BERT" if found == "bert" else found}'
    )
  named = weights.config.get('architectures') or []
  architecture = found != 'bert' and hf_names.KINDS[found].architecture
  if architecture and named and architecture not in named:
    raise ValueError(
      f'{weights.path}: config.json: architectures is {named}, but the tensors '
      f'are those of {architecture}'
    )
  return found


def config_values(weights: Weights) -> dict[str, Any]:
  """The configuration keys that a directory decides.

  Sizes, activation, epsilons, of REALM also its beams and lengths; dropout and
  initialisation are the run's own choice.

  Raises:
    ValueError: a key is missing or asks for what the models here have not.
  """
  given, where = weights.config, f'{weights.path}: config.json'
  realm = given.get('model_type') == 'realm'
  names = _BERT_SIZES | (_REALM_SIZES if realm else {})
  for name in (*names, 'hidden_act', *(_REALM_KEYS if realm else ())):
    if name not in given:
      raise ValueError(f'{where}: {name} is missing')
  activation = given['hidden_act']
  if activation not in _ACTIVATIONS:
    raise ValueError(
      f'{where}: hidden_act {activation!r}, choose from '
      f'{", ".join(_ACTIVATIONS)}'
    )
  for name, only in (
    ('position_embedding_type', 'absolute'),
    ('type_vocab_size', 2),
  ):
    if given.get(name, only) != only:
      raise ValueError(f'{where}: {name} {given[name]!r}, must be {only}')
  model = {ours: given[name] for name, ours in names.items()}
  model['activation'] = _ACTIVATIONS[activation]
  if not realm:
    return {'model': model}
  model['projection_eps'] = model['layer_norm_eps']
  return {
    'model': model,
    **{ours: given[name] for name, ours in _REALM_KEYS.items()},
  }


def to_json(kind: str, config: Config) -> dict[str, Any]:
  """The config.json of a model of this kind."""
  # Of two names the earlier.
  back = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
  model = config.model
  names = _BERT_SIZES | (_REALM_SIZES if kind != 'bert' else {})
  values: dict[str, Any] = {
    name: getattr(model, ours) for name, ours in names.items()
  }
  values |= {
    'hidden_act': back[model.activation],
    'hidden_dropout_prob': model.dropout,
    'attention_probs_dropout_prob': 0.0,
    'initializer_range': model.initializer_range,
    'type_vocab_size': 2,
    'torch_dtype': 'float32',
  }
  if kind == 'bert':
    return {
      'architectures': ['BertForMaskedLM'],
      'model_type': 'bert',
      'pad_token_id': 0,
      **values,
    }
  # Its pad_token_id is 1 by mistake (the real [PAD] is 0), and stays so: it
  # only says which row of a table gets no gradient there.
  return {
    'architectures': [hf_names.KINDS[kind].architecture],
    'model_type': 'realm',
    'pad_token_id': 1,
    **values,
    **{name: getattr(config, ours) for name, ours in _REALM_KEYS.items()},
  }
