"""What a stage reads: its corpora and its batches, checked before it starts."""

from typing import Any, NamedTuple

from etils import epath

from realm_jax import config as config_lib
from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.data import batches, questions
from realm_jax.data.ict import IctSource
from realm_jax.data.labels import AnswerLabels
from realm_jax.data.masked import MaskedSentenceSource
from realm_jax.data.mlm import MlmSource
from realm_jax.parallel import processes
from realm_jax.workdir import files


class Inputs(NamedTuple):
  """What `open_inputs` returns."""

  config: Config  # beams cut to the corpus
  corpus: Corpus  # Z
  text: Corpus  # X; Z where none is set
  source: Any  # source[step] is a batch


def open_inputs(
  stage: str, config: Config, path: str, batch_slice: tuple[int, int]
) -> Inputs:
  """Opens the corpora and the source of batches of a stage.

  Args:
    stage: mlm, ict, pretrain or finetune.
    config: of the stage.
    path: its workdir; one that is there is pinned to its generations.
    batch_slice: the part of every batch that this process makes, mesh.py.

  Returns:
    Everything checked against the config.

  Raises:
    ValueError: the config and the corpus or questions do not fit.
  """
  corpus = _open_corpus('corpus', config.corpus, path)
  text = _text_corpus(stage, config, corpus, path)
  config = _fit_to_corpus(stage, config, corpus, text)
  source = _source(stage, config, corpus, text, batch_slice)
  return Inputs(config, corpus, text, source)


def has_index(stage: str, config: Config) -> bool:
  """Whether the stage's step retrieves."""
  if stage == 'pretrain':
    return config.num_candidates > 1
  return stage == 'finetune' and not config.closed_book


def candidates(stage: str, config: Config) -> int:
  """Rows that the stage's step wants of a search, excluded ones with them."""
  if stage == 'finetune':
    return config.retriever_beam
  return config.num_candidates - 1 + config.index.max_excluded


def _open_corpus(key: str, store: str, path: str) -> Corpus:
  """The generation that the run is pinned to, or the newest for a new run."""
  if not store:
    raise ValueError(f'config.{key}: is not set; give a store of realm prepare')
  pinned = epath.Path(path) / 'corpus.json'
  if not pinned.exists():
    return Corpus.open(store)
  name = {'corpus': 'fingerprint', 'text_corpus': 'text_fingerprint'}[key]
  return Corpus.open(store, files.read_json(pinned)[name])


def _fit_to_corpus(
  stage: str, config: Config, corpus: Corpus, text: Corpus
) -> Config:
  """Checks the config against the corpora; a beam is cut to the blocks."""
  vocabulary = corpus.tokenizer.vocab_size
  if config.model.vocab_size < vocabulary:
    raise ValueError(
      f'config.model.vocab_size: {config.model.vocab_size}, but the '
      f'vocabulary of {corpus.path} has {vocabulary}'
    )
  reads = stage == 'finetune' and not config.closed_book
  if reads and config.reader_length <= config.query_length:
    raise ValueError(
      f'config.reader_length: {config.reader_length}, must be more than '
      f'query_length, {config.query_length}: the block comes after it'
    )
  longest = _longest(stage, config, corpus, text)
  if longest > config.model.max_positions:
    raise ValueError(
      f'config.model.max_positions: {config.model.max_positions}, but texts '
      f'of this stage are up to {longest} wordpieces'
    )
  refresh = config.refresh
  if refresh.changes_rows() and not (
    stage == 'pretrain' and has_index(stage, config)
  ):
    options = ('write_back', 'priority_rows')
    key = next((name for name in options if getattr(refresh, name)), 'where')
    raise ValueError(
      f'config.refresh.{key}: {getattr(refresh, key)}, but {stage} trains no '
      'document embedder with an index'
    )
  if not has_index(stage, config):
    return config
  if stage == 'pretrain' and config.num_candidates - 1 > corpus.num_blocks:
    raise ValueError(
      f'config.num_candidates: {config.num_candidates} (null included), but '
      f'{corpus.path} has {corpus.num_blocks} blocks'
    )
  shards = config.index.num_shards
  if config.index.kind != 'exact' and shards > corpus.num_blocks:
    raise ValueError(
      f'config.index.num_shards: {shards}, but {corpus.path} has '
      f'{corpus.num_blocks} blocks'
    )
  if stage == 'finetune':
    if config.reader_beam > corpus.num_blocks:
      raise ValueError(
        f'config.reader_beam: {config.reader_beam}, but {corpus.path} has '
        f'{corpus.num_blocks} blocks'
      )
    beam = min(config.retriever_beam, corpus.num_blocks)
    return config_lib.replace(config, retriever_beam=beam)
  return config


def _longest(stage: str, config: Config, corpus: Corpus, text: Corpus) -> int:
  """Wordpieces of the longest text that a stage's model takes."""
  question, block = config.query_length, corpus.block_length
  if stage == 'mlm':
    return text.block_length
  if stage == 'ict':  # whose index is of Z
    return max(question, text.block_length, block)
  if stage == 'pretrain':
    return question + block - 2
  if config.closed_book:
    return question + config.max_answer_length + 1
  return max(block, config.reader_length)


def _text_corpus(
  stage: str, config: Config, corpus: Corpus, path: str
) -> Corpus:
  """X: what a stage reads its text from."""
  if not config.text_corpus or stage == 'finetune':
    return corpus
  text = _open_corpus('text_corpus', config.text_corpus, path)
  if text.tokenizer_digest != corpus.tokenizer_digest:
    raise ValueError(
      f'config.text_corpus: {text.path} has the vocabulary '
      f'{text.tokenizer_digest}, corpus {corpus.path} has '
      f'{corpus.tokenizer_digest}; prepare both with one vocab.txt'
    )
  return text


def _source(
  stage: str,
  config: Config,
  corpus: Corpus,
  text: Corpus,
  process: tuple[int, int],
) -> Any:
  if stage == 'mlm':
    source: Any = MlmSource(text, config, *process)
  elif stage == 'ict':
    source = IctSource(
      text,
      config.batch_size,
      config.query_length,
      config.sentence_removal,
      config.seed,
      *process,
    )
  elif stage == 'pretrain':
    source = MaskedSentenceSource(text, corpus, config, *process)
  else:
    source = _question_source(config, corpus, process)
  processes.say(f'{stage}: {source.counts}')
  return source


def _question_source(
  config: Config, corpus: Corpus, process: tuple[int, int]
) -> Any:
  if not config.questions:
    raise ValueError('config.questions: is not set; give a file of questions')
  asked = questions.read_questions(config.questions)
  if config.closed_book:
    return batches.ClosedBookSource(
      asked,
      corpus.tokenizer,
      config.batch_size,
      config.query_length,
      config.max_answer_length,
      config.seed,
      *process,
    )
  labels = AnswerLabels.build(
    asked,
    corpus,
    config.max_gold_rows,
    config.max_gold_spans,
    config.model.max_span_width,
  )
  processes.say(f'finetune: answers: {labels.counts}')
  return batches.QuestionSource(
    asked,
    labels,
    corpus.tokenizer,
    config.batch_size,
    config.query_length,
    config.seed,
    *process,
  )
