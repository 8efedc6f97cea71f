"""Models in the Hugging Face layout, to our parameter trees and back."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from flax import traverse_util

from realm_jax.config import Config
from realm_jax.model import hf_config, hf_names, parts
from realm_jax.model.hf_files import Weights
from realm_jax.model.hf_names import Tensor


class Loaded(NamedTuple):
  """A model out of a directory.

  `backbone` stands before the keys of a BERT: 'bert.', 'realm.' or nothing.
  `params` are float32 arrays on the host, by the names of our checkpoints.
  `aside` holds tensors that nothing here uses, by part and their key in it
  ('reader/realm.pooler.dense.bias'; part 'bert' of a plain BERT). `fresh` names
  what was not in the directory and starts random ('encoder/mlm_head').
  `parameters` counts numbers as their class does: aliases once, no buffers.
  """

  kind: str
  backbone: str
  params: dict[str, dict[str, Any]]
  aside: dict[str, np.ndarray]
  fresh: list[str]
  parameters: int


def load(weights: Weights, config: Config) -> Loaded:
  """Takes a model out of a directory; every tensor is accounted for.

  Of a plain BERT, retriever and encoder start from its weights; heads that it
  has not start fresh from `config.seed`.

  Args:
    weights: of the directory, open.
    config: its `model` must agree with the directory's.

  Returns:
    What was found. The rows of an open-QA model (`block_emb`) are not read.

  Raises:
    ValueError: sizes differ from those of `config`, or tensors are unknown,
      missing, misshapen or not floating point: all of them are named.
  """
  model = hf_config.config_values(weights)['model']
  for name, value in model.items():
    ours = getattr(config.model, name)
    if ours != value:
      raise ValueError(
        f'model.{name}: {ours}, but the weights in {weights.path} have {value}'
      )
  found = hf_config.kind(weights)
  plan = (
    _bert_plan(weights, config)
    if found == 'bert'
    else _realm_plan(weights, config, found)
  )
  _account(weights, plan, config)
  params = {
    name: _fill(weights, plan.groups[name], params)
    for name, params in plan.params.items()
  }
  counted = {
    key
    for group in plan.groups.values()
    for tensor in group
    for key in tensor.keys(config.model.num_layers)
  } | set(plan.aside)
  return Loaded(
    found,
    plan.backbone,
    params,
    {name: weights.floats(key) for key, (name, _) in plan.aside.items()},
    plan.fresh,
    sum(int(np.prod(weights.entries[key].shape)) for key in counted),
  )


class _Plan(NamedTuple):
  """What is to be taken from where."""

  backbone: str
  params: dict[str, dict[str, Any]]  # fresh ones, by part
  groups: dict[str, list[Tensor]]  # live tensors, by part
  aside: dict[str, tuple[str, tuple[int, ...]]]  # dead: our name, shape
  aliases: dict[str, str]
  fresh: list[str]


def _realm_plan(weights: Weights, config: Config, kind: str) -> _Plan:
  if config.pooling != 'cls':
    raise ValueError(
      f'pooling: {config.pooling!r}, but the models of REALM pool by cls'
    )
  plan = _Plan('realm.', {}, {}, {}, {}, [])
  for before, (module, name) in hf_names.KINDS[kind].parts.items():
    if _is_copy(weights, before, 'embedder.'):
      plan.aliases.update(
        {
          key: key.replace(before, 'embedder.', 1)
          for key in weights.entries
          if key.startswith(before)
        }
      )
      continue
    plan.params[name] = _host(module, config)
    plan.groups[name] = [
      tensor
      for group in hf_names.table(module, 'realm.', before).values()
      for tensor in group
    ]
    plan.aside.update(
      {
        before + key: (f'{name}/{key}', shape)
        for key, shape in hf_names.dead(module, config.model).items()
      }
    )
    plan.aliases.update(hf_names.aliases(module, before, 'realm.'))
  if kind == 'open_qa':
    plan.aliases[hf_names.BLOCKS] = ''  # a buffer, read by its rows
  return plan


def _is_copy(weights: Weights, before: str, original: str) -> bool:
  """Whether the query embedder is the document embedder itself."""
  if before != 'query_embedder.':
    return False
  own = [key for key in weights.entries if key.startswith(before)]
  return all(
    (first := key.replace(before, original, 1)) in weights.entries
    and np.array_equal(
      weights.entries[key].read(slice(None)),
      weights.entries[first].read(slice(None)),
    )
    for key in own
  )


def _bert_plan(weights: Weights, config: Config) -> _Plan:
  backbone = 'bert.' if f'bert.{hf_names.WORD}' in weights.entries else ''
  plan = _Plan(backbone, {}, {}, {}, {}, [])
  for module, name in (
    ('embedder', 'document_embedder'),
    ('encoder', 'encoder'),
  ):
    params, groups = _host(module, config), []
    for label, group in hf_names.table(module, backbone).items():
      if label == 'pooler' and config.pooling != 'cls':
        continue
      if label == 'backbone' or any(t.key in weights.entries for t in group):
        groups += group
        continue
      plan.fresh.append(f'{name}/{label}')
      if label == 'projection':
        params['projection']['kernel'] = _rotation(config)
    plan.params[name], plan.groups[name] = params, groups
    plan.aliases.update(hf_names.aliases(module, '', backbone))
  dead = hf_names.dead_of_bert(backbone, config.pooling, config.model)
  plan.aside.update(
    {
      key: (f'bert/{key.removeprefix(backbone)}', shape)
      for key, shape in dead.items()
      if key in weights.entries
    }
  )
  return plan


def _account(weights: Weights, plan: _Plan, config: Config) -> None:
  """Names every tensor that is unknown, missing or misshapen."""
  shapes = {key: shape for key, (_, shape) in plan.aside.items()}
  for name, group in plan.groups.items():
    flat = traverse_util.flatten_dict(plan.params[name])
    for tensor in group:
      shape = flat[tensor.path].shape[tensor.stacked :]
      shape = shape[::-1] if tensor.transposed else shape
      shapes |= dict.fromkeys(tensor.keys(config.model.num_layers), shape)
  entries = weights.entries
  wrong = {
    'missing': sorted(set(shapes) - set(entries)),
    'unknown': sorted(set(entries) - set(shapes) - set(plan.aliases)),
    'misshapen': [
      f'{key} {list(entries[key].shape)} (must be {list(shape)})'
      for key, shape in sorted(shapes.items())
      if key in entries and entries[key].shape != shape
    ],
  }
  if any(wrong.values()):
    said = '; '.join(
      f'{what}: {", ".join(keys)}' for what, keys in wrong.items() if keys
    )
    raise ValueError(f'{weights.path}: tensors {said}')
  for key, first in plan.aliases.items():
    if (
      key in entries
      and first
      and not np.array_equal(weights.floats(key), weights.floats(first))
    ):
      raise ValueError(
        f'{weights.path}: {key} differs from {first}; they must be one'
      )


def _fill(
  weights: Weights, group: Sequence[Tensor], params: dict[str, Any]
) -> dict[str, Any]:
  """A copy of `params` with the arrays of a group."""
  flat = traverse_util.flatten_dict(params)
  for tensor in group:
    like = flat[tensor.path]
    keys = tensor.keys(len(like) if tensor.stacked else 1)
    array = np.empty((len(keys), *like.shape[tensor.stacked :]), np.float32)
    for number, key in enumerate(keys):
      found = weights.floats(key)
      array[number] = found.T if tensor.transposed else found
    flat[tensor.path] = array.reshape(like.shape)
  return traverse_util.unflatten_dict(flat)


def _host(module: parts.Part, config: Config) -> dict[str, Any]:
  """Fresh parameters of a part, as numpy."""
  number = get_args(parts.Part).index(module)
  key = jax.random.fold_in(jax.random.key(config.seed), number)
  return jax.tree.map(np.asarray, parts.init_part(module, config, key))


def _rotation(config: Config) -> np.ndarray:
  """A projection that leaves a trained space as it is: angles stay.

  Its columns (of fewer outputs than inputs) or rows are orthogonal: inner
  products of the outputs are those of the inputs. Independent elements, as a
  model from scratch has, would add noise. The elements' size is BERT's.
  """
  size_in, size_out = config.model.hidden_size, config.model.retrieval_size
  scale = config.model.initializer_range * max(size_in, size_out) ** 0.5
  rotate = jax.nn.initializers.orthogonal(scale)
  return np.asarray(rotate(jax.random.key(config.seed), (size_in, size_out)))


def tensors(
  kind: str, params: Mapping[str, dict[str, Any]], config: Config
) -> dict[str, np.ndarray]:
  """The live tensors of a model, by Hugging Face key.

  Args:
    kind: 'bert' (the encoder, as BertForMaskedLM) or one of hf_names.KINDS.
    params: arrays by the names of our checkpoints; a scorer whose embedders
      are shared has no `query_embedder`.
    config: of the run.

  Returns:
    float32 arrays, without aliases and what is dead.
  """
  if kind == 'bert':
    placed = {('bert.', ''): ('encoder', 'encoder')}
  else:
    placed = {
      ('realm.', before): part
      for before, part in hf_names.KINDS[kind].parts.items()
    }
  found: dict[str, np.ndarray] = {}
  for (backbone, before), (module, name) in placed.items():
    if name not in params and name == 'query_embedder' and kind == 'scorer':
      continue
    flat = traverse_util.flatten_dict(params[name])
    for group in hf_names.table(module, backbone, before).values():
      for tensor in group:
        array = np.asarray(flat[tensor.path], np.float32)
        layers = array if tensor.stacked else [array]
        for key, layer in zip(
          tensor.keys(config.model.num_layers), layers, strict=True
        ):
          found[key] = layer.T if tensor.transposed else layer
  return found
