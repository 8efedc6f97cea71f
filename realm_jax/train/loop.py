"""The one training loop. Steps are pure; everything else happens here.

The order of operations between two steps, and nothing outside it:
  1. swap in a new index version, if one is ready (in-process: make it, but not
     after SIGTERM);
  2. score the dev questions, if the step says so;
  3. by the policy `bounded`: wait for a version;
  4. save, if the step says so or SIGTERM came;
  5. take the next batch, which a thread has made ahead (of kind scann_host
     also its candidates, and start the search for the one after it);
  6. dispatch the step (one that is profiled runs alone, profile.py);
  7. log the metrics of the step before, while this one runs.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn

from realm_jax.config import Config
from realm_jax.index import write
from realm_jax.index.search import Index
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.train.collapse import CollapseAlarm
from realm_jax.train.dev import Evaluate
from realm_jax.train.host_search import HostSearch
from realm_jax.train.index_feed import IndexFeed
from realm_jax.train.profile import Profile
from realm_jax.train.refresh_policy import Patience
from realm_jax.train.samples import SampleLog
from realm_jax.train.state import TrainState
from realm_jax.train.terminated import Terminated
from realm_jax.workdir import files
from realm_jax.workdir.checkpoints import Checkpoints
from realm_jax.workdir.digest import embedder_digest
from realm_jax.workdir.metrics import MetricsWriter
from realm_jax.workdir.run import Workdir

Metrics = dict[str, Any]  # scalars; of pre-training also `sample`
_FINITE = ('loss', 'gradient_norm')  # or the run ends
Step = Callable[
  [TrainState, dict[str, jax.Array], Index | None, jax.Array],
  tuple[TrainState, Index | None, Metrics],
]


@dataclasses.dataclass
class Run:
  """All that the loop needs of a stage."""

  workdir: Workdir
  config: Config
  mesh: jax.sharding.Mesh
  step: Step  # jitted; state and index are donated
  batches: Iterator[dict[str, np.ndarray]]  # from the first step on
  ids: Callable[[int], list[str]]  # of what step n, from 0, is made of
  host_search: HostSearch | None  # takes `batches`, of kind scann_host
  state: TrainState
  feed: IndexFeed | None  # None: the stage has no index
  checkpoints: Checkpoints
  metrics: MetricsWriter | None  # None: another process writes
  samples: SampleLog | None
  alarm: CollapseAlarm | None  # None: the stage does not train a retriever
  profile: Profile
  # Scores on dev questions, and the one of them that picks the best
  # checkpoint; called every `eval_every` steps and at the end.
  evaluate: Evaluate | None
  eval_every: int
  best: str | None


def train_loop(run: Run) -> int:
  """Trains until `num_steps`.

  Args:
    run: the stage, its state at the step to go on from.

  Returns:
    0 when done, 75 when SIGTERM came and the state was saved.

  Raises:
    FloatingPointError: the loss or its gradient is not finite; names the first
      such step and what its batch was made of. Nothing of it has been saved.
  """
  config = run.config
  first = int(run.state.step)
  if first >= config.num_steps:
    processes.say(f'{run.workdir.stage}: is at its last step, {first}')
  state, feed = run.state, run.feed
  run.state = None  # type: ignore[assignment]  # donated to the first step
  key = jax.random.key(config.seed)
  terminated = Terminated()
  progress = _Progress(run, first)
  log = _Log(run, first, progress)
  patience = Patience(config.refresh)
  with terminated, progress, jax.set_mesh(run.mesh), log.cause_first():
    for step in range(first, config.num_steps + 1):
      last = step == config.num_steps
      processes.beat(f'step {step}')
      stop = terminated.now()
      ends = last or (stop and step > first)
      # Who sent SIGTERM may not wait for a version: the run that goes on from
      # here makes it. Without it the step has no score either.
      hurries = ends and not last and feed is not None and feed.makes_versions
      swapped = (
        feed is not None and not hurries and feed.swap(step, state.params, last)
      )
      score = None  # of this very step
      due = run.evaluate and step > first and not hurries
      due = due and _due(step, run.eval_every, last)
      if due and run.evaluate:
        scores = run.evaluate(state, feed.searchable if feed else None)
        log.evaluated(step, scores)
        score = scores[run.best] if run.best else None
      if feed is not None and not (stop or last):
        stop = patience.wait(
          feed,
          step,
          save=functools.partial(_save_now, run, log, step, state, score),
          swap=functools.partial(feed.swap, step, state.params, last),
          stopped=terminated.now,
        )
        ends = stop and step > first
      if step > first and (
        last
        or stop
        or swapped
        or step % config.checkpoint_every == 0
        or (due and run.best)
      ):
        log.flush()
        log.check()
        save(run, step, state, score)
      if ends:
        break
      stale, since = {}, feed.since if feed else 0
      if run.host_search and feed:
        batch, stale['query_staleness_steps'], since = run.host_search.take(
          state.params, feed.searchable, since
        )
      else:
        batch = next(run.batches)
      index = feed.index if feed else None
      state, index, metrics = run.profile.run(
        step + 1,
        run.step,
        state,
        mesh_lib.put_batch(batch, run.mesh),
        index,
        jax.random.fold_in(key, step),
      )
      if feed:
        feed.index = index
      log.previous(step + 1, metrics | stale, batch, since)
      progress.advance()
    log.flush()
    run.profile.end()
    run.checkpoints.close()
    if last and processes.is_first():
      files.write_json(run.workdir.path / 'finished.json', {'step': step})
  if last:
    return 0
  processes.say(f'stopped by SIGTERM; saved step {step}')
  return processes.SIGTERM_STATUS


def _save_now(
  run: Run, log: '_Log', step: int, state: TrainState, score: float | None
) -> None:
  log.flush()
  log.check()
  save(run, step, state, score)
  run.checkpoints.wait()


def _due(step: int, every: int, last: bool) -> bool:
  return last or (every > 0 and step % every == 0)


def save(
  run: Run, step: int, state: TrainState, score: float | None = None
) -> None:
  """Starts to save a step, unless it is the newest one saved.

  Args:
    run: whose checkpoints, and whose index version is recorded.
    step: steps done.
    state: at that step.
    score: on the dev questions, where the best checkpoint is kept.
  """
  if run.checkpoints.latest_step() == step:
    return
  digest = None
  if run.feed:
    digest = run.feed.digest(state.params)
  elif 'document_embedder' in state.params:
    digest = embedder_digest(state.params['document_embedder'], run.config)
  items = {
    'params': state.params,
    'opt_state': state.opt_state,
    'step': {'step': state.step},
  }
  if run.feed and run.config.refresh.changes_rows():
    items['index'] = write.state(run.feed.index)
  pending = run.host_search.pending() if run.host_search else None
  if pending is not None:
    items['found'] = pending
  run.checkpoints.save(
    step,
    items,
    {
      'stage': run.workdir.stage,
      'embedder_digest': digest,
      'index_version': run.feed.version if run.feed else None,
    },
    score=score,
  )


class _Pending(NamedTuple):
  """A step that is logged while the next one runs."""

  step: int
  metrics: Metrics
  index: dict[str, Any] | None  # version and staleness; None: no line
  batch: dict[str, np.ndarray] | None  # None: no samples


class _Log:
  """Writes a step's metrics while the next one runs."""

  def __init__(self, run: Run, first: int, progress: '_Progress'):
    self._run = run
    self._progress = progress
    self._pending: _Pending | None = None
    # Step, and its numbers that must be finite.
    self._unchecked: list[tuple[int, dict[str, jax.Array]]] = []
    self._since = (first, time.monotonic())
    self._warm = False

  def previous(
    self,
    step: int,
    metrics: Metrics,
    batch: dict[str, np.ndarray],
    since: int,
  ) -> None:
    """Logs the step before; `step` is logged by the next call.

    Args:
      step: dispatched just now.
      metrics: of it, maybe still being computed.
      batch: that it took.
      since: the step that its index was made of.
    """
    self.flush()
    watched = {name: metrics[name] for name in _FINITE}
    self._unchecked.append((step, watched))
    if self._run.feed:
      self._run.feed.step_done(step, since)
    config = self._run.config
    logged = _due(step, config.log_every, step == config.num_steps)
    sampled = self._run.samples and _due(step, config.sample_every, False)
    if logged or sampled:
      self._pending = _Pending(
        step,
        metrics,
        self._index(step, since) if logged else None,
        batch if sampled else None,
      )
    if not self._warm:
      # The first step compiles: it is no measure of speed.
      jax.block_until_ready(metrics)
      self._since = (step, time.monotonic())
      self._warm = True

  def flush(self) -> None:
    if self._pending is None:
      return
    step, metrics, index, batch = self._pending
    self._pending = None
    values = jax.device_get(metrics)
    sample = values.pop('sample', None)
    self.check()
    if batch is not None and self._run.samples:
      self._run.samples.write(step, batch, sample)
    if index is None:
      return
    values = {name: float(value) for name, value in values.items()}
    before, began = self._since
    now = time.monotonic()
    self._since = (step, now)
    if step > before:
      values['examples_per_second'] = (
        (step - before) * self._run.config.batch_size / (now - began)
      )
    values |= index
    if self._run.alarm:
      values |= self._run.alarm.update(step, values)
    self._write(step, values)

  def check(self) -> None:
    """Raises FloatingPointError if a step's loss or gradient is not finite."""
    unchecked, self._unchecked = self._unchecked, []
    fetched = jax.device_get([watched for _, watched in unchecked])
    for (step, _), watched in zip(unchecked, fetched, strict=True):
      for name in _FINITE:
        if not math.isfinite(watched[name]):
          ids = ', '.join(self._run.ids(step - 1))
          what = name.replace('_', ' ')
          raise FloatingPointError(
            f'step {step}: the {what} is {watched[name]} on {ids}'
          )

  @contextlib.contextmanager
  def cause_first(self) -> Iterator[None]:
    """Where parameters that are not finite break what uses them, raises
    what `check` does.

    An index made of them or a search for them is refused as bad input is.
    """
    try:
      yield
    except ValueError:
      self.check()
      raise

  def evaluated(self, step: int, scores: dict[str, float]) -> None:
    self.flush()
    since = self._run.feed.since if self._run.feed else 0
    self._write(step, {**scores, **self._index(step, since, window=False)})
    self._since = (step, time.monotonic())

  def _write(self, step: int, values: dict[str, Any]) -> None:
    if self._run.metrics:
      self._run.metrics.write(step, values)
    self._progress.say(step, values)

  def _index(
    self, step: int, since: int, window: bool = True
  ) -> dict[str, Any]:
    feed = self._run.feed
    return {} if feed is None else feed.metrics(step, since, window)


class _Progress:
  """What a person sees on standard error.

  A bar on a terminal; elsewhere, as in the log of a job, a line for every
  logged step.
  """

  def __init__(self, run: Run, first: int):
    self._stage, self._num_steps = run.workdir.stage, run.config.num_steps
    console = Console(stderr=True)
    self._terminal = console.is_terminal and processes.is_first()
    self._bar = Progress(
      *Progress.get_default_columns(),
      TextColumn('{task.fields[said]}'),
      console=console,
      disable=not self._terminal,
      transient=True,
    )
    self._task = self._bar.add_task(
      self._stage, total=self._num_steps, completed=first, said=''
    )

  def __enter__(self) -> '_Progress':
    self._bar.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.stop()

  def advance(self) -> None:
    self._bar.advance(self._task)

  def say(self, step: int, values: dict[str, float]) -> None:
    """Shows a logged step: its loss, or its scores on dev questions."""
    if self._terminal:
      said = f'loss {values["loss"]:.4g}' if 'loss' in values else ''
      self._bar.update(self._task, said=said)
    else:
      said = ', '.join(f'{name} {value:.4g}' for name, value in values.items())
      processes.say(f'{self._stage} {step}/{self._num_steps}: {said}')
