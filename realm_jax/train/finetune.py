"""Open-QA fine-tuning over a frozen index (ORQA section 4)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from realm_jax.config import Config
from realm_jax.index.gather import gather
from realm_jax.index.search import Index, find
from realm_jax.model import parts
from realm_jax.model.joint import join
from realm_jax.train import losses
from realm_jax.train.state import TrainState, query_embedder
from realm_jax.train.update import Batch, update

TRAINED = ('query_embedder', 'reader')


def trained_parts(config: Config) -> tuple[str, ...]:
  """The parts of the model that fine-tuning changes."""
  more = ('document_embedder',) if config.train_document_embedder else ()
  return (*TRAINED, *more)


class Reading(NamedTuple):
  """What was retrieved and read for a batch of questions."""

  score_BK: jax.Array  # retriever logits of the beam, descending, -inf: none
  row_BK: jax.Array  # -1: none
  span_BRJW: jax.Array  # span score plus retriever logit
  valid_BRJW: jax.Array
  body_start_BR: jax.Array


def read(
  params: dict[str, Any],
  query_BL: jax.Array,
  index: Index,
  keys: tuple[jax.Array | None, ...],
  config: Config,
  sep_id: int,
  embed_afresh: bool = False,
  found: dict[str, jax.Array] | None = None,
) -> Reading:
  """Retrieves `retriever_beam` blocks and reads the best `reader_beam`.

  The index's scores only select; the beam is rescored from its stored rows
  in float32, with a gradient to the query encoder. With `embed_afresh` the
  blocks that are read are scored by fresh embeddings (a third key is of their
  dropout), with a gradient to the document embedder too. `found` is a batch:
  with found_row_BK and found_row_BKE the hosts have searched.
  """
  query_side = parts.bind('embedder', config, query_embedder(params))
  query_BE = query_side(query_BL, sep_id=sep_id, key=keys[0])
  found = found or {}
  _, row_BK = find(index, found, query_BE, config.retriever_beam)
  if 'found_row_BKE' in found:
    row_BKE = found['found_row_BKE']
  else:
    row_BKE = gather(index.rows_NE, row_BK)
  score_BK = jnp.einsum('BE,BKE->BK', query_BE, row_BKE)
  score_BK = jnp.where(
    row_BK >= 0, score_BK / config.score_temperature, -jnp.inf
  )
  score_BK, place_BK = jax.lax.top_k(score_BK, score_BK.shape[1])
  row_BK = jnp.take_along_axis(row_BK, place_BK, 1)

  beam = config.reader_beam
  document_BRL = gather(index.tokens_NL, row_BK[:, :beam])
  if embed_afresh:
    embedder = parts.bind('embedder', config, params['document_embedder'])
    fresh = embedder(
      document_BRL.reshape(-1, document_BRL.shape[2]),
      sep_id=sep_id,
      key=keys[2],
    )
    fresh_BR = jnp.einsum(
      'BE,BRE->BR', query_BE, fresh.reshape(-1, beam, fresh.shape[1])
    )
    fresh_BR = jnp.where(
      row_BK[:, :beam] >= 0, fresh_BR / config.score_temperature, -jnp.inf
    )
    score_BK = jnp.concatenate([fresh_BR, score_BK[:, beam:]], 1)
  token_BRJ, segment_BRJ, start_BR, end_BR = join(
    query_BL, document_BRL, config.reader_length, sep_id
  )
  reader = parts.bind('reader', config, params['reader'])
  batch_size, _, length = token_BRJ.shape
  flat = batch_size * beam
  span = reader(
    token_BRJ.reshape(flat, length),
    segment_BRJ.reshape(flat, length),
    start_BR.reshape(flat),
    end_BR.reshape(flat),
    key=keys[1],
  )
  span_BRJW = span.reshape(batch_size, beam, length, -1)
  found_BR = row_BK[:, :beam] >= 0
  valid_BRJW = (span_BRJW > parts.NO_SPAN) & found_BR[:, :, None, None]
  logit_BR = jnp.where(found_BR, score_BK[:, :beam], 0.0)
  return Reading(
    score_BK,
    row_BK,
    span_BRJW + logit_BR[:, :, None, None],
    valid_BRJW,
    start_BR,
  )


def finetune_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  index: Index,
  key: jax.Array,
  config: Config,
  sep_id: int,
) -> tuple[TrainState, Index, dict[str, jax.Array]]:
  """One step of fine-tuning: query encoder and reader over an index.

  Args:
    state: with query_embedder and reader, and the document_embedder, which is
      frozen unless `train_document_embedder`.
    batch: query_BL; gold_row_BC (sorted, padded high); gold_start_BCS and
      gold_end_BCS, inclusive wordpieces of the body, padded -1.
    index: over Z.
    key: of dropout.
    config: static.
    sep_id: static, id of [SEP].

  Returns:
    The next state, the index, and metrics: loss (nats a question),
    retriever_loss, reader_loss (nats a question that has gold),
    retrieved_rate and readable_rate (fractions of questions with a gold block
    in the beam, a gold span among the blocks read), span_accuracy.
  """

  questions = batch['query_BL'].shape[0]

  def loss_fn(trained: dict[str, Any], batch: Batch, key: jax.Array) -> Any:
    reading = read(
      {**state.params, **trained},
      batch['query_BL'],
      index,
      tuple(jax.random.split(key, 2 + config.train_document_embedder)),
      config,
      sep_id,
      embed_afresh=config.train_document_embedder,
      found=batch,
    )
    return finetune_loss(reading, batch, questions)

  names = trained_parts(config)
  state, metrics = update(state, names, loss_fn, batch, key, config)
  return state, index, metrics


def finetune_loss(
  reading: Reading, batch: Batch, questions: int
) -> tuple[jax.Array, dict[str, Any]]:
  """[any c_k] L_retr + [any gold span] L_read, the mean over questions.

  Where a question's list of gold rows is full, later rows may be gold or not:
  they are left out. `batch` may be a part of the global batch,
  which has `questions` of them.
  """
  row_BK, gold_row_BC = reading.row_BK, batch['gold_row_BC']
  beam = reading.valid_BRJW.shape[1]
  # A list that is not full ends in a row behind all others.
  known_BK = (row_BK >= 0) & (row_BK <= gold_row_BC[:, -1:])
  valid_BRJW = reading.valid_BRJW & known_BK[:, :beam, None, None]
  place_BK, gold_BK = _find(gold_row_BC, row_BK)
  retr_B, has_row_B = losses.retriever_loss(
    jnp.where(known_BK, reading.score_BK, 0.0), known_BK, gold_BK
  )
  gold_BRJW = _gold_spans(
    batch,
    place_BK[:, :beam],
    gold_BK[:, :beam],
    reading.body_start_BR,
    valid_BRJW.shape,
  )
  read_B, has_span_B = losses.reader_loss(
    reading.span_BRJW, valid_BRJW, gold_BRJW
  )
  flat_score = jnp.where(valid_BRJW, reading.span_BRJW, -jnp.inf)
  best_B = flat_score.reshape(len(row_BK), -1).argmax(-1)
  right_B = jnp.take_along_axis(
    gold_BRJW.reshape(len(row_BK), -1), best_B[:, None], 1
  )[:, 0]
  return (retr_B + read_B).sum() / questions, {
    'retriever_loss': losses.Mean(retr_B.sum(), has_row_B.sum()),
    'reader_loss': losses.Mean(read_B.sum(), has_span_B.sum()),
    'retrieved_rate': has_row_B.mean(),
    'readable_rate': has_span_B.mean(),
    'span_accuracy': right_B.mean(),
  }


def _find(
  gold_row_BC: jax.Array, row_BK: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Where each row stands among the question's gold rows, and whether."""
  place_BK = jax.vmap(jnp.searchsorted)(gold_row_BC, row_BK)
  place_BK = jnp.minimum(place_BK, gold_row_BC.shape[1] - 1)
  gold_BK = jnp.take_along_axis(gold_row_BC, place_BK, 1) == row_BK
  return place_BK, gold_BK


def _gold_spans(
  batch: dict[str, jax.Array],
  place_BR: jax.Array,
  gold_BR: jax.Array,
  body_start_BR: jax.Array,
  shape: tuple[int, ...],
) -> jax.Array:
  """Which spans are answers, [B, R, J, W] bool."""
  _, _, length, width = shape
  start_BRS = jnp.take_along_axis(
    batch['gold_start_BCS'], place_BR[:, :, None], 1
  )
  end_BRS = jnp.take_along_axis(batch['gold_end_BCS'], place_BR[:, :, None], 1)
  known_BRS = (start_BRS >= 0) & gold_BR[:, :, None]
  start_BRS1 = (start_BRS + body_start_BR[:, :, None])[..., None]
  at_BRSJ = (start_BRS1 == jnp.arange(length)[None, None, None]) & (
    known_BRS[..., None]
  )
  width_BRS1 = (end_BRS - start_BRS)[..., None]
  wide_BRSW = width_BRS1 == jnp.arange(width)[None, None, None]
  return (at_BRSJ[..., :, None] & wide_BRSW[..., None, :]).any(2)
