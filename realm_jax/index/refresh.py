"""The refresh job: follows a trainer's checkpoints, publishes index versions.

Paper section 3.3: the index is rebuilt asynchronously while training goes on.
A process of its own, on its own machines; all it shares with the trainer is
the workdir.
"""

import signal
import threading
from typing import Any

import jax
from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.index import approximate, build
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.workdir import checkpoints, files, versions
from realm_jax.workdir.run import Workdir

_LONGEST_POLL_SECONDS = 30.0


def refresh(path: str, follow: bool) -> int:
  """Builds index versions for the run in a workdir.

  Args:
    path: the workdir. With `follow` it may not be there yet: a refresher can
      be started before its trainer.
    follow: go on until training is done and its last checkpoint has its
      version; else publish one version of the newest checkpoint, over the
      newest generation of the corpus, and return.

  Returns:
    Exit status: 0 done, 75 stopped by SIGTERM.

  Raises:
    ValueError: no workdir or checkpoint to build from, or another refresher
      is running.
  """
  stop = threading.Event()

  def terminate(*_: object) -> None:
    # Others may wait for this process; what it has written nobody can see.
    processes.end(processes.SIGTERM_STATUS, 'stopped by SIGTERM')
    stop.set()

  previous = signal.signal(signal.SIGTERM, terminate)
  try:
    came = processes.from_first(
      not follow or (processes.is_first() and _wait_for_workdir(path, stop))
    )
    if not came:
      return processes.SIGTERM_STATUS
    workdir = Workdir.open(path)
    with workdir.lock('refresher'):
      job = _Job(workdir, stop)
      return job.follow() if follow else job.once()
  except build.Interrupted:
    return processes.SIGTERM_STATUS
  finally:
    signal.signal(signal.SIGTERM, previous)


def embedder_digest(workdir: Workdir, step: int) -> str:
  """Digest of the document embedder, recorded when `step` was saved."""
  return checkpoints.read_record(workdir.path, step)['embedder_digest']


class _Job:
  """One refresher: a corpus, and the checkpoints of a workdir.

  The first process follows them and tells the others what to do. Each has the
  embedder whole, over its own devices.
  """

  def __init__(self, workdir: Workdir, stop: threading.Event):
    self._workdir = workdir
    self._config: Config = workdir.config
    self._stop = stop
    self._mesh = mesh_lib.local_mesh()

  def once(self) -> int:
    """Builds the version that is missing, if one is."""
    found = processes.from_first(
      self._newest() if processes.is_first() else None
    )
    if found is not None:
      corpus = Corpus.open(self._config.corpus, found['fingerprint'])
      self._build(found['step'], corpus)
    return 0

  def _newest(self) -> dict[str, Any] | None:
    """What to build of the newest checkpoint, or None: it is there."""
    steps = checkpoints.steps(self._workdir.path)
    if not steps:
      raise ValueError(f'{self._workdir.checkpoints}: no checkpoint yet')
    step = steps[-1]
    if self._workdir.stage == 'finetune':
      step = checkpoints.best_step(self._workdir.path) or step
    # The newest generation of the corpus: documents that were added since
    # training are embedded too.
    corpus = Corpus.open(self._config.corpus)
    if self._published(step, corpus, [self._workdir.index]):
      return None
    return {'step': step, 'fingerprint': corpus.fingerprint}

  def follow(self) -> int:
    """Builds a version of each checkpoint that it comes to."""
    corpus = Corpus.open(self._config.corpus, self._pinned())
    places = [self._workdir.index]
    if self._workdir.shared_index:  # the trainer may have started with it
      places.append(self._workdir.shared_index)
    while True:
      step = processes.from_first(
        self._next_step(corpus, places) if processes.is_first() else None
      )
      if step is None:
        return processes.SIGTERM_STATUS if self._stop.is_set() else 0
      self._build(step, corpus)

  def _next_step(self, corpus: Corpus, places: list[epath.Path]) -> int | None:
    """Waits for a checkpoint without a version; None: none will come."""
    poll = self._config.refresh.poll_seconds
    while not self._stop.is_set():
      # Asked in this order: a checkpoint saved after the second question
      # finds the first one answered with "not finished".
      finished = (self._workdir.path / 'finished.json').exists()
      steps = checkpoints.steps(self._workdir.path)
      if steps and not self._published(steps[-1], corpus, places):
        return steps[-1]
      if finished and steps:
        return None
      processes.beat('waiting for a checkpoint')
      self._stop.wait(poll)
      poll = min(poll * 1.5, _LONGEST_POLL_SECONDS)
    return None

  def _pinned(self) -> str | None:
    """The corpus generation of the run, once the trainer has recorded it."""
    file = self._workdir.path / 'corpus.json'
    return files.read_json(file)['fingerprint'] if file.exists() else None

  def _published(
    self, step: int, corpus: Corpus, places: list[epath.Path]
  ) -> bool:
    """Whether a version is of the embedder of `step` and of this corpus."""
    want = (
      embedder_digest(self._workdir, step),
      corpus.fingerprint,
    )
    for index in places:
      for version in reversed(versions.list_versions(index)):
        found = versions.read_manifest(index, version)
        have = (found.embedder_digest, found.corpus_fingerprint)
        if have == want and not approximate.difference(found, self._config):
          return True
    return False

  def _build(self, step: int, corpus: Corpus) -> None:
    processes.beat(f'restoring step {step}')
    params = None
    try:
      params = restore_part(
        self._workdir, step, 'document_embedder', self._mesh
      )
    except FileNotFoundError as error:
      processes.say(f'refresh: {error}')
    if not all(processes.gather(params is not None)):
      return  # the trainer deleted the checkpoint: a newer one is there
    manifest = build.build_version(
      self._workdir.index,
      params,
      corpus,
      self._config,
      self._mesh,
      step,
      embedder_digest(self._workdir, step),
      self._stop.is_set,
    )
    processes.say(
      f'refresh: version {manifest.version} of step {step}: {manifest.rows} '
      f'blocks in {manifest.build_seconds:.1f} s'
    )
    if processes.is_first():
      used = in_use(self._workdir)
      versions.prune(self._workdir.index, self._config.index.keep, used)


def in_use(workdir: Workdir) -> set[int]:
  """Versions that the trainer uses or would resume with."""
  used = {
    checkpoints.read_record(workdir.path, step)['index_version']
    for step in checkpoints.steps(workdir.path)
  }
  swaps = files.read_lines(workdir.swaps)
  if swaps:
    used.add(swaps[-1]['version'])
  return {version for version in used if version is not None}


def restore_part(
  workdir: Workdir, step: int, part: str, mesh: jax.sharding.Mesh
) -> Any:
  """One part of a checkpoint's parameters, straight to the devices."""
  shapes = checkpoints.params_shapes(workdir.path, step)
  if part not in shapes:
    raise ValueError(
      f'{workdir.path}: step {step} has no {part}; has {", ".join(shapes)}'
    )
  abstract = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes[part],
    mesh_lib.tree_shardings(shapes[part], mesh),
  )
  return checkpoints.restore_part(workdir.path, step, part, abstract)


def _wait_for_workdir(path: str, stop: threading.Event) -> bool:
  """Whether the trainer's first checkpoint came before SIGTERM did.

  The trainer saves it when its first index version is out; until then it may
  be building that version itself.
  """
  poll, said = 0.5, False
  while not checkpoints.steps(path):
    if not said:
      processes.say(f'refresh: waiting for a trainer in {path}')
      said = True
    processes.beat('waiting for a trainer')
    if stop.wait(poll):
      return False
    poll = min(poll * 1.5, _LONGEST_POLL_SECONDS)
  return True
