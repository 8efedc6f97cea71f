"""Outputs of an imported model beside those of the reference."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.config import Config
from realm_jax.model import parts
from realm_jax.model.huggingface import Loaded
from realm_jax.train import losses

Arrays = Mapping[str, np.ndarray]
# What numpy raises of other files, of its own other kinds and of damaged ones.
_NO_NPZ = (
  OSError,
  ValueError,
  AttributeError,
  TypeError,
  zipfile.BadZipFile,
  zlib.error,
)
_TEXT = ('input_ids', 'attention_mask', 'token_type_ids')


def verify(loaded: Loaded, config: Config, path: str) -> dict[str, float]:
  """Feeds reference inputs to a model and compares what comes out.

  Names are those of the reference's arguments and outputs. Inputs:
  `input_ids, attention_mask, token_type_ids`; of a scorer also those with
  `candidate_`; of an encoder `relevance_score, labels, mlm_mask`; of a reader
  `relevance_score, block_mask, start_positions, end_positions, has_answers`.
  Everything else in the file is an output.

  Args:
    loaded: the model.
    config: its sizes.
    path: an `.npz` file.

  Returns:
    For each output of the file the largest absolute difference; of booleans
    and integers too, where any difference is at least 1.

  Raises:
    ValueError: the file is no .npz, or lacks an input, or has an output that
      such a model does not give or gives in another shape.
  """
  try:
    with open(path, 'rb') as raw, np.load(raw, allow_pickle=False) as file:
      given = {name: file[name] for name in file.files}
  except _NO_NPZ as error:
    raise ValueError(f'--verify {path}: not an .npz file: {error}') from error
  kind = loaded.kind
  if kind == 'open_qa':
    kind = 'reader' if 'block_mask' in given else 'query'
  wanted = {name: x for name, x in given.items() if name not in _INPUTS[kind]}
  if not wanted:
    raise ValueError(f'--verify {path}: has inputs only, no output to compare')
  try:
    found = outputs(kind, loaded.params, config, given)
  except KeyError as error:
    raise ValueError(f'--verify {path}: has no input {error}') from error
  if unknown := sorted(set(wanted) - set(found)):
    raise ValueError(
      f'--verify {path}: {", ".join(unknown)}: not an output of this '
      f'{loaded.kind} with these inputs; it gives {", ".join(found)}'
    )
  return {
    name: _difference(name, np.asarray(found[name]), want, path)
    for name, want in wanted.items()
  }


def outputs(
  kind: str, params: Mapping[str, Any], config: Config, given: Arrays
) -> dict[str, Any]:
  """What a model gives for the reference's inputs, by the reference's names.

  Differentiable in `params`.

  Args:
    kind: 'query' (a query embedder), or as in hf_names.
    params: by the names of our checkpoints.
    config: their sizes.
    given: inputs; outputs among them are not looked at.

  Raises:
    KeyError: an input is missing.
  """
  with jax.default_matmul_precision('highest'):
    return _RUN[kind](params, config, given)


def _difference(
  name: str, found: np.ndarray, want: np.ndarray, path: str
) -> float:
  if found.shape != want.shape:
    raise ValueError(
      f'--verify {path}: {name} is {list(want.shape)}, the model gives '
      f'{list(found.shape)}'
    )
  both = found.astype(np.float64), want.astype(np.float64)
  largest = np.abs(both[0] - both[1]).max(initial=0)
  # A NaN is as far as can be from a number.
  return float(largest) if np.isfinite(largest) else float('inf')


def _text(given: Arrays, before: str = '') -> tuple[jax.Array, ...]:
  """Tokens, segments and which are real, as [texts, L]."""
  token = given[f'{before}input_ids']
  segment = given.get(f'{before}token_type_ids', np.zeros_like(token))
  real = given.get(f'{before}attention_mask', np.ones_like(token))
  return tuple(
    jnp.asarray(x.reshape(-1, x.shape[-1]), dtype)
    for x, dtype in ((token, 'int32'), (segment, 'int32'), (real, 'bool'))
  )


def _bert(params: Any, config: Config, given: Arrays) -> dict[str, Any]:
  token_BL, segment_BL, real_BL = _text(given)
  encoder = parts.bind('encoder', config, params['encoder'])
  hidden_BLD = encoder.bert(token_BL, segment_BL, real_BL=real_BL)
  outputs = {'last_hidden_state': hidden_BLD}
  if config.pooling == 'cls':
    embedder = parts.bind('embedder', config, params['document_embedder'])
    outputs['pooler_output'] = jnp.tanh(embedder.pooler(hidden_BLD[:, 0]))
  logits = _logits(encoder, token_BL, segment_BL, real_BL)
  return {**outputs, 'logits': logits, 'prediction_logits': logits}


def _logits(encoder: Any, token_BL: Any, segment_BL: Any, real_BL: Any) -> Any:
  """Of every position, [B, L, V]."""
  position_BL = jnp.broadcast_to(jnp.arange(token_BL.shape[1]), token_BL.shape)
  return encoder(token_BL, segment_BL, position_BL, real_BL=real_BL)


def _embedding(
  params: Any, config: Config, given: Arrays, before: str = ''
) -> jax.Array:
  token_BL, segment_BL, real_BL = _text(given, before)
  embedder = parts.bind('embedder', config, params)
  return embedder.embed(token_BL, segment_BL, real_BL=real_BL)


def _document(params: Any, config: Config, given: Arrays) -> dict[str, Any]:
  embedded = _embedding(params['document_embedder'], config, given)
  return {'projected_score': embedded}


def _query(params: Any, config: Config, given: Arrays) -> dict[str, Any]:
  embedded = _embedding(params['query_embedder'], config, given)
  return {'projected_score': embedded}


def _scorer(params: Any, config: Config, given: Arrays) -> dict[str, Any]:
  document = params['document_embedder']
  query = params.get('query_embedder', document)
  query_BE = _embedding(query, config, given)
  found = _embedding(document, config, given, 'candidate_')
  document_BKE = found.reshape(len(query_BE), -1, found.shape[-1])
  return {
    'relevance_score': jnp.einsum('BE,BKE->BK', query_BE, document_BKE),
    'query_score': query_BE,
    'candidate_score': document_BKE,
  }


def _encoder(params: Any, config: Config, given: Arrays) -> dict[str, Any]:
  """The release's marginal: a token at a time."""
  token_BL, segment_BL, real_BL = _text(given)
  encoder = parts.bind('encoder', config, params['encoder'])
  logits = _logits(encoder, token_BL, segment_BL, real_BL)
  outputs = {'logits': logits}
  if 'labels' not in given:
    return outputs
  label_BL = jnp.asarray(given['labels'], 'int32')
  batch, length = label_BL.shape
  weight_BL = jnp.asarray(
    given.get('mlm_mask', np.ones((batch, length))), 'float32'
  )
  logits_BKLV = logits.reshape(batch, -1, length, logits.shape[-1])
  target_BKL = jnp.broadcast_to(
    # Places that do not count may hold any number.
    jnp.clip(label_BL, 0)[:, None],
    logits_BKLV.shape[:3],
  )
  log_prior_BK = jax.nn.log_softmax(
    jnp.asarray(given['relevance_score'], 'float32')
  )
  outputs['per_token_marginal_loss'], _ = losses.marginal_loss(
    log_prior_BK,
    losses.token_log_probs(logits_BKLV, target_BKL),
    weight_BL,
    weight_BL.sum(),
    'token',
  )
  outputs['loss'] = outputs['per_token_marginal_loss']
  return outputs


def _reader(params: Any, config: Config, given: Arrays) -> dict[str, Any]:
  """Spans are numbered as the reference does: all of one width, then wider."""
  beam = config.reader_beam
  token_RL, segment_RL, real_RL = (x[:beam] for x in _text(given))
  body_RL = np.asarray(given['block_mask'], bool)[:beam]
  start_R = body_RL.argmax(1)
  end_R = start_R + body_RL.sum(1)
  place_1L = np.arange(body_RL.shape[1])[None]
  whole_RL = (place_1L >= start_R[:, None]) & (place_1L < end_R[:, None])
  if (whole_RL != body_RL).any():
    raise ValueError('--verify: block_mask: a block must be without gaps')
  score_K = jnp.asarray(given['relevance_score'], 'float32')
  reader = parts.bind('reader', config, params['reader'])
  span_RLW = reader(token_RL, segment_RL, start_R, end_R, real_BL=real_RL)
  valid_RLW = span_RLW > parts.NO_SPAN
  span_RLW += score_K[: len(span_RLW), None, None]
  order = _widths_first(*span_RLW.shape[1:])
  flat_RS = jnp.where(valid_RLW, span_RLW, -jnp.inf).reshape(len(span_RLW), -1)[
    :, order
  ]
  best = jnp.stack([flat_RS.max(1).argmax(), flat_RS.max(0).argmax()])
  start, width = jnp.divmod(jnp.asarray(order)[best[1]], span_RLW.shape[2])
  outputs = {
    'block_idx': best[0],
    'candidate': best[1],
    'start_pos': start[None],
    'end_pos': (start + width)[None],
  }
  if 'has_answers' not in given:
    return outputs
  length = token_RL.shape[1]
  gold_RLW = _gold(
    *(
      np.clip(given[name][:beam], -1, length)
      for name in ('start_positions', 'end_positions')
    ),
    span_RLW.shape,
  )
  has_K = jnp.asarray(given['has_answers'], bool)
  retriever_1, _ = losses.retriever_loss(
    score_K[None], jnp.ones((1, len(score_K)), bool), has_K[None]
  )
  reader_1, _ = losses.reader_loss(
    span_RLW[None], valid_RLW[None], gold_RLW[None]
  )
  return {
    **outputs,
    'retriever_correct': has_K,
    'reader_correct': gold_RLW.reshape(len(gold_RLW), -1)[:, order],
    'retriever_loss': retriever_1[0],
    'reader_loss': reader_1[0],
    'loss': (retriever_1 + reader_1)[0],
  }


def _gold(
  start_RA: np.ndarray, end_RA: np.ndarray, shape: tuple[int, ...]
) -> jax.Array:
  """Which spans are answers, [R, L, W] bool."""
  _, length, width = shape
  first = np.arange(length)[None, None, :, None]
  last = first + np.arange(width)[None, None, None, :]
  hit_RALW = (start_RA[:, :, None, None] == first) & (
    end_RA[:, :, None, None] == last
  )
  return jnp.asarray(hit_RALW.any(1))


def _widths_first(length: int, width: int) -> np.ndarray:
  """Places in a flat [L, W] of the spans within L, all of a width together."""
  return np.concatenate(
    [np.arange(length - w) * width + w for w in range(width)]
  )


_INPUTS = {
  'bert': _TEXT,
  'embedder': _TEXT,
  'query': _TEXT,
  'scorer': (*_TEXT, *(f'candidate_{name}' for name in _TEXT)),
  'encoder': (*_TEXT, 'relevance_score', 'labels', 'mlm_mask'),
  'reader': (
    *(*_TEXT, 'relevance_score', 'block_mask'),
    *('start_positions', 'end_positions', 'has_answers'),
  ),
}
_RUN: dict[str, Callable[[Any, Config, Arrays], dict[str, Any]]] = {
  'bert': _bert,
  'embedder': _document,
  'query': _query,
  'scorer': _scorer,
  'encoder': _encoder,
  'reader': _reader,
}
