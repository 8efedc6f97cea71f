"""One training stage, from its config to its exit status."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.data import prefetch, questions
from realm_jax.index.refresh import check_embedder
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.train import dev, finetune, ict, mlm, pretrain
from realm_jax.train.collapse import CollapseAlarm
from realm_jax.train.host_search import HostSearch
from realm_jax.train.index_feed import IndexFeed
from realm_jax.train.initialize import check_vocabulary, initial_params
from realm_jax.train.inputs import candidates, has_index, open_inputs
from realm_jax.train.loop import Run, Step, save, train_loop
from realm_jax.train.optimizer import make_optimizer
from realm_jax.train.profile import Profile
from realm_jax.train.program import jit_step
from realm_jax.train.samples import SampleLog
from realm_jax.train.state import TrainState
from realm_jax.train.terminated import Stopped, stopped_at_once
from realm_jax.workdir import checkpoints as checkpoints_lib
from realm_jax.workdir import files
from realm_jax.workdir.metrics import MetricsWriter
from realm_jax.workdir.run import Workdir, absolute_paths

_PREFETCH = 4
_TRAINED = {
  'mlm': mlm.TRAINED,
  'ict': ict.TRAINED,
  'pretrain': pretrain.TRAINED,
}


def train(
  stage: str, config: Config, path: str, profile: Sequence[int] = ()
) -> int:
  """Runs a stage in a workdir, or goes on with the one that is there.

  Args:
    stage: mlm, ict, pretrain or finetune.
    config: of the stage.
    path: its workdir.
    profile: steps, from 1, to write profiler traces of.

  Returns:
    Exit status: 0 done, 75 stopped by SIGTERM after saving, or before there
    was anything to save.

  Raises:
    ValueError: the config, the corpus or the workdir cannot be right.
  """
  with contextlib.ExitStack() as stack:
    try:
      with stopped_at_once():
        run = _set_up(stage, config, path, profile, stack)
    except Stopped:
      processes.say('stopped by SIGTERM before the first step')
      return processes.SIGTERM_STATUS
    return train_loop(run)


def _set_up(
  stage: str,
  config: Config,
  path: str,
  profile: Sequence[int],
  stack: contextlib.ExitStack,
) -> Run:
  """All that the loop needs; `stack` closes it."""
  mesh = mesh_lib.make_mesh(config.mesh)
  mesh_lib.check_batch(
    'batch_size', config.batch_size, mesh, config.micro_batches
  )
  refresh = config.refresh
  if refresh.where == 'rolling':
    mesh_lib.check_batch('refresh.rows_per_step', refresh.rows_per_step, mesh)
  mesh_lib.check_batch('refresh.priority_rows', refresh.priority_rows, mesh)
  config = absolute_paths(config)
  config, corpus, text, source = open_inputs(
    stage, config, path, mesh_lib.batch_slice(mesh)
  )
  evaluate, best, every = _evaluation(stage, config, corpus, mesh, source)
  _agree(stage, config, corpus, text)
  # Before the workdir is made: an init_from that is refused leaves none.
  state = None
  if not _has_steps(path):
    check_vocabulary(config, corpus)
    state = _initial_state(stage, config, mesh)
  workdir = stack.enter_context(_workdir(path, stage, config, corpus, text))
  # Under its lock: a trainer that ended just now may have saved its first one.
  resumed = _has_steps(path)
  saved = checkpoints_lib.Checkpoints(
    workdir.path, config.keep_checkpoints, keep_best=best is not None
  )
  if processes.alone():  # else others may be gone, whom a save waits for
    stack.callback(saved.settle)
  if state is None or resumed:
    state = _resumed_state(workdir, config, mesh, saved)
  frozen = stage == 'finetune' and not config.train_document_embedder
  step = int(state.step)
  went_on_from = step if resumed else None
  feed = None
  if has_index(stage, config):
    feed = IndexFeed(
      workdir,
      config,
      corpus,
      mesh,
      state.params,
      went_on_from,
      frozen=frozen,
      probed=source[0],
    )
    stack.callback(feed.close)
    if resumed and config.refresh.changes_rows():
      feed.restore(
        step, lambda like: saved.restore_item(step, 'index', like, True)
      )
  batches = prefetch.prefetch(source, step, _PREFETCH)
  host_search = None
  if feed is not None and config.index.kind == 'scann_host':
    host_search = _host_search(
      stage, config, corpus, mesh, batches, saved, went_on_from
    )
    stack.callback(host_search.close)
  metrics, samples = _logs(stage, workdir, corpus, went_on_from)
  if metrics:
    stack.callback(metrics.close)
  run = Run(
    workdir=workdir,
    config=config,
    mesh=mesh,
    step=_compiled(_step(stage, config, corpus), mesh),
    batches=batches,
    host_search=host_search,
    ids=source.ids,
    state=state,
    feed=feed,
    checkpoints=saved,
    metrics=metrics,
    samples=samples,
    alarm=_alarm(stage, config, corpus),
    profile=Profile(workdir.path, profile),
    evaluate=evaluate,
    eval_every=every,
    best=best,
  )
  own = feed is not None and (not frozen or feed.version is not None)
  if not resumed and (stage == 'pretrain' or own):
    # The state that version 1 belongs to; a refresher takes it as the sign
    # that the first version is out.
    save(run, 0, state)
  return run


def _has_steps(path: str) -> bool:
  """Whether there is a run to go on with; the first process looks."""
  return processes.from_first(
    processes.is_first() and bool(checkpoints_lib.steps(path))
  )


def _logs(
  stage: str, workdir: Workdir, corpus: Corpus, went_on_from: int | None
) -> tuple[MetricsWriter | None, SampleLog | None]:
  """What one process of a run writes."""
  if not processes.is_first():
    return None, None
  metrics = MetricsWriter(workdir.path, went_on_from)
  if stage != 'pretrain':
    return metrics, None
  return metrics, SampleLog(workdir.path, corpus, went_on_from)


def _host_search(
  stage: str,
  config: Config,
  corpus: Corpus,
  mesh: jax.sharding.Mesh,
  batches: Iterator[dict[str, np.ndarray]],
  saved: checkpoints_lib.Checkpoints,
  went_on_from: int | None,
) -> HostSearch:
  """The search ahead of the steps, with what a checkpoint says it had found."""
  host_search = HostSearch(
    config, mesh, batches, candidates(stage, config), corpus.tokenizer.sep_id
  )
  if went_on_from is not None:
    found = saved.restore_item(
      went_on_from, 'found', host_search.abstract(config.batch_size)
    )
    if 'since_B' in found:  # else saved before it was: searched anew
      host_search.go_on(found)
  return host_search


def _alarm(stage: str, config: Config, corpus: Corpus) -> CollapseAlarm | None:
  if stage != 'pretrain' or not has_index(stage, config):
    return None
  return CollapseAlarm(corpus.num_blocks, config.num_candidates - 1)


def _agree(stage: str, config: Config, corpus: Corpus, text: Corpus) -> None:
  """Raises ValueError where processes were started with different inputs."""
  values = {f'config.{name}': value for name, value in config.to_dict().items()}
  processes.agree(
    {
      'verb': stage,
      **values,
      f'corpus {corpus.path}': corpus.fingerprint,
      f'text_corpus {text.path}': text.fingerprint,
    }
  )


@contextlib.contextmanager
def _workdir(
  path: str, stage: str, config: Config, corpus: Corpus, text: Corpus
) -> Iterator[Workdir]:
  """The stage's workdir, made and locked by the first process."""
  if processes.is_first():
    with Workdir.held(path, stage, config) as workdir:
      (workdir.path / 'finished.json').unlink(missing_ok=True)
      _pin(workdir, corpus, text)
      processes.barrier()
      yield workdir
  else:
    processes.barrier()
    yield Workdir(epath.Path(path), stage, config)


def _pin(workdir: Workdir, corpus: Corpus, text: Corpus) -> None:
  """Writes down which generations the run is made of."""
  files.write_json(
    workdir.path / 'corpus.json',
    {
      'path': str(corpus.path),
      'fingerprint': corpus.fingerprint,
      'text_fingerprint': text.fingerprint,
      'tokenizer_digest': corpus.tokenizer_digest,
    },
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
  if stage == 'pretrain' and not has_index(stage, config):
    return None, None, 0
  asked = questions.read_questions(config.dev_questions)
  every = config.eval_every or source.steps_per_epoch
  if stage == 'pretrain':
    return dev.retrieval_dev(asked, config, corpus, mesh), None, every
  return dev.answer_dev(asked, config, corpus, mesh), 'exact_match', every


def _initial_state(
  stage: str, config: Config, mesh: jax.sharding.Mesh
) -> TrainState:
  params = initial_params(stage, config, mesh)
  create = functools.partial(_create_state, stage, config)
  shardings = mesh_lib.tree_shardings(jax.eval_shape(create, params), mesh)
  # Donation would take init_from's buffers twice where parts share them.
  return jax.jit(create, out_shardings=shardings)(params)


def _resumed_state(
  workdir: Workdir,
  config: Config,
  mesh: jax.sharding.Mesh,
  saved: checkpoints_lib.Checkpoints,
) -> TrainState:
  """The newest checkpoint's state."""
  newest = saved.latest_step()
  abstract = jax.eval_shape(
    functools.partial(_create_state, workdir.stage, config),
    checkpoints_lib.params_shapes(workdir.path, newest),
  )
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
  if 'document_embedder' in restored['params']:
    document = restored['params']['document_embedder']
    check_embedder(workdir, newest, document)
  processes.say(f'{workdir.stage}: goes on from step {newest}')
  return TrainState(
    jnp.asarray(restored['step']['step']),
    restored['params'],
    restored['opt_state'],
  )


def _create_state(
  stage: str, config: Config, params: dict[str, Any]
) -> TrainState:
  closed = stage == 'finetune' and config.closed_book
  if stage == 'finetune' and not closed:
    names = finetune.trained_parts(config)
  else:
    names = mlm.TRAINED if closed else _TRAINED[stage]
  return TrainState.create(params, names, make_optimizer(config))


def _compiled(step: Step, mesh: jax.sharding.Mesh) -> Step:
  """A program for each kind of index that comes.

  That is one, save where a version's options were measured anew: how many
  leaves are searched is part of the program.
  """
  programs: dict[Any, Step] = {}

  def run(state: Any, batch: Any, index: Any, key: Any) -> Any:
    structure = jax.tree.structure(index)
    if structure not in programs:
      programs[structure] = jit_step(step, mesh, state, index)
    return programs[structure](state, batch, index, key)

  return run


def _step(stage: str, config: Config, corpus: Corpus) -> Step:
  """The stage's step, with one signature for the loop."""
  tokenizer = corpus.tokenizer
  if stage == 'pretrain':
    with_index = functools.partial(
      pretrain.pretrain_step,
      config=config,
      cls_id=tokenizer.cls_id,
      sep_id=tokenizer.sep_id,
      num_rows=corpus.num_blocks,
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
