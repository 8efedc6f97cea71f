"""One training stage, from its config to its exit status."""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from realm_jax import config as config_lib
from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.data import batches, prefetch, questions
from realm_jax.data.ict import IctSource
from realm_jax.data.labels import AnswerLabels
from realm_jax.data.masked import MaskedSentenceSource
from realm_jax.data.mlm import MlmSource
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train import dev, finetune, ict, mlm, pretrain
from realm_jax.train.index_feed import IndexFeed
from realm_jax.train.initialize import initial_params
from realm_jax.train.loop import Run, Step, save, train_loop
from realm_jax.train.optimizer import make_optimizer
from realm_jax.train.program import jit_step
from realm_jax.train.state import TrainState
from realm_jax.workdir import checkpoints as checkpoints_lib
from realm_jax.workdir import files
from realm_jax.workdir.metrics import MetricsWriter
from realm_jax.workdir.run import Workdir

_PREFETCH = 4
_TRAINED = {
  'mlm': mlm.TRAINED,
  'ict': ict.TRAINED,
  'pretrain': pretrain.TRAINED,
  'finetune': finetune.TRAINED,
}


def train(stage: str, config: Config, path: str) -> int:
  """Runs a stage in a workdir, or goes on with the one that is there.

  Args:
    stage: mlm, ict, pretrain or finetune.
    config: of the stage.
    path: its workdir.

  Returns:
    Exit status: 0 done, 75 stopped by SIGTERM after saving.

  Raises:
    ValueError: the config, the corpus or the workdir cannot be right.
  """
  mesh = mesh_lib.make_mesh(config.mesh)
  mesh_lib.check_batch('batch_size', config.batch_size, mesh)
  corpus = _open_corpus('corpus', config.corpus, path)
  config = _fit_to_corpus(stage, config, corpus)
  text = _text_corpus(stage, config, corpus, path)
  source = _source(stage, config, corpus, text)
  evaluate, best, every = _evaluation(stage, config, corpus, mesh, source)
  workdir = Workdir.create(path, stage, config)
  with workdir.lock('trainer'):
    (workdir.path / 'finished.json').unlink(missing_ok=True)
    files.write_json(
      workdir.path / 'corpus.json',
      {
        'path': str(corpus.path),
        'fingerprint': corpus.fingerprint,
        'text_fingerprint': text.fingerprint,
        'tokenizer_digest': corpus.tokenizer_digest,
      },
    )
    saved = checkpoints_lib.Checkpoints(
      workdir.path, config.keep_checkpoints, keep_best=best is not None
    )
    resumed = saved.latest_step() is not None
    state = _state(stage, config, mesh, workdir, saved)
    step = int(state.step)
    feed = None
    if _has_index(stage, config):
      feed = IndexFeed(
        workdir,
        config,
        corpus,
        mesh,
        state.params,
        step if resumed else None,
        frozen=stage == 'finetune',
      )
    metrics = MetricsWriter(workdir.path, step if resumed else None)
    run = Run(
      workdir=workdir,
      config=config,
      mesh=mesh,
      step=jit_step(
        _step(stage, config, corpus), mesh, state, feed and feed.index
      ),
      batches=prefetch.prefetch(source, step, _PREFETCH),
      state=state,
      feed=feed,
      checkpoints=saved,
      metrics=metrics,
      evaluate=evaluate,
      eval_every=every,
      best=best,
    )
    try:
      if not resumed and stage == 'pretrain':
        # The state that version 1 belongs to; a refresher takes it as the sign
        # that the first version is out.
        save(run, 0, state)
      return train_loop(run)
    finally:
      metrics.close()
      if feed:
        feed.close()


def _has_index(stage: str, config: Config) -> bool:
  if stage == 'pretrain':
    return config.num_candidates > 1
  return stage == 'finetune' and not config.closed_book


def _open_corpus(key: str, store: str, path: str) -> Corpus:
  """The generation that the run is pinned to, or the newest for a new run."""
  if not store:
    raise ValueError(f'config.{key}: is not set; give a store of realm prepare')
  pinned = epath.Path(path) / 'corpus.json'
  if not pinned.exists():
    return Corpus.open(store)
  name = {'corpus': 'fingerprint', 'text_corpus': 'text_fingerprint'}[key]
  return Corpus.open(store, files.read_json(pinned)[name])


def _fit_to_corpus(stage: str, config: Config, corpus: Corpus) -> Config:
  """Checks the config against the corpus; a beam is cut to its blocks."""
  vocabulary = corpus.tokenizer.vocab_size
  if config.model.vocab_size < vocabulary:
    raise ValueError(
      f'config.model.vocab_size: {config.model.vocab_size}, but the '
      f'vocabulary of {corpus.path} has {vocabulary}'
    )
  longest = {
    'mlm': corpus.block_length,
    'ict': max(corpus.block_length, config.query_length),
    'pretrain': corpus.block_length + config.query_length - 2,
    'finetune': max(corpus.block_length, config.reader_length),
  }[stage]
  if longest > config.model.max_positions:
    raise ValueError(
      f'config.model.max_positions: {config.model.max_positions}, but texts '
      f'of this stage are up to {longest} wordpieces'
    )
  if not _has_index(stage, config):
    return config
  if config.num_candidates - 1 > corpus.num_blocks:
    raise ValueError(
      f'config.num_candidates: {config.num_candidates} (null included), but '
      f'{corpus.path} has {corpus.num_blocks} blocks'
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


def _source(stage: str, config: Config, corpus: Corpus, text: Corpus) -> Any:
  process = (jax.process_index(), jax.process_count())
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
  print(f'{stage}: {source.counts}', file=sys.stderr)
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
  print(f'finetune: answers: {labels.counts}', file=sys.stderr)
  return batches.QuestionSource(
    asked,
    labels,
    corpus.tokenizer,
    config.batch_size,
    config.query_length,
    config.seed,
    *process,
  )


def _evaluation(
  stage: str,
  config: Config,
  corpus: Corpus,
  mesh: jax.sharding.Mesh,
  source: Any,
) -> tuple[dev.Evaluate | None, str | None, int]:
  """What is asked of the dev questions, the score that decides, how often."""
  if not config.dev_questions or stage not in ('pretrain', 'finetune'):
    return None, None, 0
  if stage == 'pretrain' and not _has_index(stage, config):
    return None, None, 0
  asked = questions.read_questions(config.dev_questions)
  every = config.eval_every or source.steps_per_epoch
  if stage == 'pretrain':
    return dev.retrieval_dev(asked, config, corpus, mesh), None, every
  return dev.answer_dev(asked, config, corpus, mesh), 'exact_match', every


def _state(
  stage: str,
  config: Config,
  mesh: jax.sharding.Mesh,
  workdir: Workdir,
  saved: checkpoints_lib.Checkpoints,
) -> TrainState:
  """The newest checkpoint's state, or the initial one."""
  tx = make_optimizer(config)
  closed = stage == 'finetune' and config.closed_book
  names = mlm.TRAINED if closed else _TRAINED[stage]
  newest = saved.latest_step()

  def create(params: dict[str, Any]) -> TrainState:
    return TrainState.create(
      params, tuple(part for part in names if part in params), tx
    )

  if newest is None:
    params = initial_params(stage, config, mesh)
    shardings = mesh_lib.tree_shardings(jax.eval_shape(create, params), mesh)
    # Donation would take init_from's buffers twice where parts share them.
    return jax.jit(create, out_shardings=shardings)(params)
  shapes = checkpoints_lib.params_shapes(workdir.path, newest)
  abstract = jax.eval_shape(create, shapes)
  abstract = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    abstract,
    mesh_lib.tree_shardings(abstract, mesh),
  )
  restored = saved.restore(
    newest,
    {
      'params': abstract.params,
      'opt_state': abstract.opt_state,
      'step': {'step': abstract.step},
    },
  )
  print(f'{stage}: goes on from step {newest}', file=sys.stderr)
  return TrainState(
    jnp.asarray(restored['step']['step']),
    restored['params'],
    restored['opt_state'],
  )


def _step(stage: str, config: Config, corpus: Corpus) -> Step:
  """The stage's step, with one signature for the loop."""
  tokenizer = corpus.tokenizer
  if stage == 'pretrain':
    with_index = functools.partial(
      pretrain.pretrain_step,
      config=config,
      cls_id=tokenizer.cls_id,
      sep_id=tokenizer.sep_id,
    )
  elif stage == 'finetune' and not config.closed_book:
    with_index = functools.partial(
      finetune.finetune_step, config=config, sep_id=tokenizer.sep_id
    )
  else:
    plain = (
      functools.partial(ict.ict_step, config=config, sep_id=tokenizer.sep_id)
      if stage == 'ict'
      else functools.partial(mlm.mlm_step, config=config)
    )

    def with_index(state: Any, batch: Any, index: Any, key: Any) -> Any:
      state, metrics = plain(state, batch, key)
      return state, index, metrics

  return with_index
