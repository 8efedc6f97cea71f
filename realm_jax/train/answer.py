"""Retrieving and answering; training and evaluation share it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.data import batches
from realm_jax.index.embed import embed_tokens
from realm_jax.index.scann_host import HostIndex
from realm_jax.index.search import Index, search
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.train import finetune
from realm_jax.train.state import query_embedder

_BATCH = 32
_SHOWN = 20  # passages of an answer
# An index selects by scores that may be rounded, a beam is scored exactly: so
# many hold the passages that are shown.
_BEAM = 100


@dataclasses.dataclass(frozen=True)
class Evidence:
  """Passages of one question, best first; missing places are left out."""

  rows: list[int]
  scores: list[float]  # f(x, z) / temperature
  null_score: float | None = None  # of the null document, where it was asked


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer and what it was read from.

  `row` is None for a closed-book answer or where nothing was found.
  """

  text: str
  score: float
  row: int | None
  evidence: Evidence


def retrieve(
  params: dict[str, Any],
  index: Index | HostIndex,
  texts: Sequence[str],
  k: int,
  config: Config,
  corpus: Corpus,
  mesh: jax.sharding.Mesh,
  null: bool = False,
) -> list[Evidence]:
  """The k best passages for each text, with the scores of the index's rows.

  With `null` also the score of the null document (pre-training).
  """
  tokenizer = corpus.tokenizer
  null_E = _embed_null(params, config, corpus, mesh) if null else None
  found = []
  for query_BL, real in _batched(texts, config, corpus, mesh):
    processes.beat(f'question {len(found)}')
    with jax.set_mesh(mesh):
      query_BE = embed_tokens(
        query_embedder(params), query_BL, config, tokenizer.sep_id
      )
      if isinstance(index, HostIndex):
        score_BK, row_BK = index.search(mesh_lib.to_host(query_BE), k)
      else:
        score_BK, row_BK = mesh_lib.to_host(_search(index, query_BE, k=k))
    evidence = _evidence(
      score_BK[:real] / config.score_temperature,
      row_BK[:real],
    )
    if null_E is not None:
      null_B = mesh_lib.to_host(query_BE)[:real] @ null_E
      null_B = null_B / config.score_temperature + config.null_bias
      evidence = [
        dataclasses.replace(shown, null_score=float(score))
        for shown, score in zip(evidence, null_B, strict=True)
      ]
    found += evidence
  return found


def answer(
  params: dict[str, Any],
  index: Index | HostIndex,
  texts: Sequence[str],
  config: Config,
  corpus: Corpus,
  mesh: jax.sharding.Mesh,
) -> list[Answer]:
  """Answers questions from the passages that are retrieved for them."""
  sep_id = corpus.tokenizer.sep_id
  beam = max(config.reader_beam, _BEAM)
  config = dataclasses.replace(config, retriever_beam=beam)
  answers = []
  for query_BL, real in _batched(texts, config, corpus, mesh):
    processes.beat(f'question {len(answers)}')
    with jax.set_mesh(mesh):
      device, found = index, None
      if isinstance(index, HostIndex):
        device = index.device
        found = _find(params, index, query_BL, config, sep_id, mesh)
      best = mesh_lib.to_host(
        _read(params, device, query_BL, found, config=config, sep_id=sep_id)
      )
    row_B, start_B, end_B, span_B, score_BK, row_BK = (x[:real] for x in best)
    evidence = _evidence(score_BK, row_BK)
    texts_B = _span_texts(corpus, row_B, start_B, end_B)
    answers += [
      Answer(text, float(score), int(row) if row >= 0 else None, shown)
      for text, score, row, shown in zip(
        texts_B, span_B, row_B, evidence, strict=True
      )
    ]
  return answers


def answer_closed_book(
  params: dict[str, Any],
  texts: Sequence[str],
  config: Config,
  corpus: Corpus,
  mesh: jax.sharding.Mesh,
) -> list[Answer]:
  """Answers from the encoder's parameters alone, by filling masks."""
  tokenizer = corpus.tokenizer
  answers = []
  size = _batch_size(mesh)
  for first in range(0, len(texts), size):
    processes.beat(f'question {first}')
    part = list(texts[first : first + size])
    token_BL, segment_BL, position_BM, _ = batches.closed_book_inputs(
      part + [''] * (size - len(part)),
      tokenizer,
      config.query_length,
      config.max_answer_length,
    )
    batch = mesh_lib.put_whole(
      {
        'token_BL': token_BL,
        'segment_BL': segment_BL,
        'position_BM': position_BM,
      },
      mesh,
    )
    with jax.set_mesh(mesh):
      piece_BM, score_BM = mesh_lib.to_host(
        _fill(params['encoder'], **batch, config=config)
      )
    pairs = zip(piece_BM[: len(part)], score_BM[: len(part)], strict=True)
    for piece_M, score_M in pairs:
      ends = np.flatnonzero(piece_M == tokenizer.sep_id)
      end = int(ends[0]) if len(ends) else len(piece_M)
      text = tokenizer.decode(piece_M[:end].tolist())
      answers.append(
        Answer(text, float(score_M[: end + 1].sum()), None, Evidence([], []))
      )
  return answers


def _batch_size(mesh: jax.sharding.Mesh) -> int:
  data = mesh.shape['data']
  return -(-_BATCH // data) * data


def _batched(
  texts: Sequence[str], config: Config, corpus: Corpus, mesh: jax.sharding.Mesh
) -> Any:
  """Yields (query_BL on the devices, how many of it are real)."""
  size = _batch_size(mesh)
  query_QL, _ = batches.encode_questions(
    texts, corpus.tokenizer, config.query_length
  )
  for first in range(0, len(texts), size):
    query_BL = np.zeros((size, query_QL.shape[1]), np.int32)
    part = query_QL[first : first + size]
    query_BL[: len(part)] = part
    yield (
      mesh_lib.put_whole({'query_BL': query_BL}, mesh)['query_BL'],
      len(part),
    )


def _embed_null(
  params: dict[str, Any],
  config: Config,
  corpus: Corpus,
  mesh: jax.sharding.Mesh,
) -> np.ndarray:
  """The null document, float32 [E]."""
  tokenizer = corpus.tokenizer
  null_L = [tokenizer.cls_id, tokenizer.sep_id, tokenizer.sep_id]
  token_BL = np.tile(np.array(null_L, np.int32), (mesh.shape['data'], 1))
  with jax.set_mesh(mesh):
    null_BE = embed_tokens(
      params['document_embedder'],
      mesh_lib.put_whole({'token_BL': token_BL}, mesh)['token_BL'],
      config,
      tokenizer.sep_id,
    )
  return mesh_lib.to_host(null_BE)[0]


def _evidence(score_BK: np.ndarray, row_BK: np.ndarray) -> list[Evidence]:
  """Rows that were found and their scores.

  Raises:
    ValueError: scores that are no numbers; the rows of an index are.
  """
  wrong_BK = (row_BK >= 0) & ~np.isfinite(score_BK)
  if wrong_BK.any():
    raise ValueError(
      f'{np.count_nonzero(wrong_BK.any(1))} of {len(row_BK)} questions have '
      'an embedding that is not finite: the parameters of the query embedder '
      'are damaged'
    )
  return [
    Evidence(
      [int(row) for row in row_K if row >= 0],
      [
        float(score)
        for score, row in zip(score_K, row_K, strict=True)
        if row >= 0
      ],
    )
    for score_K, row_K in zip(score_BK, row_BK, strict=True)
  ]


def _span_texts(
  corpus: Corpus, row_B: np.ndarray, start_B: np.ndarray, end_B: np.ndarray
) -> list[str]:
  """Spans of body wordpieces, both ends included, as the source's text."""
  texts = [corpus.text(int(row)) if row >= 0 else '' for row in row_B]
  encoded = corpus.tokenizer.encode_batch(texts)
  spans = []
  for text, (_, offsets), row, start, end in zip(
    texts, encoded, row_B, start_B, end_B, strict=True
  ):
    if row < 0:
      spans.append('')
    else:
      spans.append(text[offsets[start][0] : offsets[end][1]])
  return spans


def _find(
  params: dict[str, Any],
  index: HostIndex,
  query_BL: jax.Array,
  config: Config,
  sep_id: int,
  mesh: jax.sharding.Mesh,
) -> dict[str, jax.Array]:
  """The retriever's beam, found by the hosts."""
  query_BE = embed_tokens(query_embedder(params), query_BL, config, sep_id)
  score_BK, row_BK = index.search(
    mesh_lib.to_host(query_BE), config.retriever_beam
  )
  return mesh_lib.put_whole(
    {
      'found_score_BK': score_BK.astype(np.float32),
      'found_row_BK': row_BK.astype(np.int32),
      'found_row_BKE': index.rows(row_BK),
    },
    mesh,
  )


_search = jax.jit(search, static_argnames='k')


@functools.partial(jax.jit, static_argnames=('config', 'sep_id'))
def _read(
  params: dict[str, Any],
  index: Index,
  query_BL: jax.Array,
  found: dict[str, jax.Array] | None,
  config: Config,
  sep_id: int,
) -> tuple[jax.Array, ...]:
  reading = finetune.read(
    params, query_BL, index, (None, None), config, sep_id, found=found
  )
  batch, beam, length, width = reading.span_BRJW.shape
  span_B = jnp.where(reading.valid_BRJW, reading.span_BRJW, -jnp.inf).reshape(
    batch, -1
  )
  best_B = span_B.argmax(-1)
  place_B = best_B // (length * width)
  start_B = best_B // width % length
  body_B = jnp.take_along_axis(reading.body_start_BR, place_B[:, None], 1)[:, 0]
  score_B = span_B.max(-1)
  row_B = jnp.take_along_axis(reading.row_BK[:, :beam], place_B[:, None], 1)[
    :, 0
  ]
  row_B = jnp.where(score_B == -jnp.inf, -1, row_B)
  first_B = start_B - body_B
  shown = min(_SHOWN, reading.row_BK.shape[1])
  return (
    row_B,
    first_B,
    first_B + best_B % width,
    score_B,
    reading.score_BK[:, :shown],
    reading.row_BK[:, :shown],
  )


@functools.partial(jax.jit, static_argnames=('config',))
def _fill(
  params: dict[str, Any],
  token_BL: jax.Array,
  segment_BL: jax.Array,
  position_BM: jax.Array,
  config: Config,
) -> tuple[jax.Array, jax.Array]:
  encoder = parts.bind('encoder', config, params)
  logits_BMV = encoder(token_BL, segment_BL, position_BM)
  log_prob_BMV = jax.nn.log_softmax(logits_BMV, axis=-1)
  return log_prob_BMV.argmax(-1), log_prob_BMV.max(-1)
