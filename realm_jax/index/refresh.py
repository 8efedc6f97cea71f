"""The refresh job: follows a trainer's checkpoints, publishes index versions.

Paper section 3.3: the index is rebuilt asynchronously while training goes on.
A process of its own, on its own machines; all it shares with the trainer is
the workdir.

What it does when a checkpoint comes while it embeds an older one: it finishes.
Were it to start over, a trainer that saves faster than a corpus can be embedded
would never get a version; finished, versions come as fast as they can be made,
and each is of the newest checkpoint there was when it was begun.
"""

import contextlib
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.index import approximate, build
from realm_jax.index.embed import Interrupted
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.workdir import checkpoints, digest, files, leases, versions
from realm_jax.workdir.run import Workdir

# It looks for a checkpoint in steps of this share of the time waited so far.
_POLL_SHARE = 0.05
_LONGEST_POLL_SECONDS = 30.0
_RETRY_POLLS = 10  # after a build that could not be written
_STOP = 'refresh/stop'
# In the workdir: the step that the trainer wants a version of (policy
# adaptive, or no version is left), and versions that it found damaged.
REQUEST = 'refresh_request.json'
# The newest step that can have no version: the trainer must not wait for it.
PASSED_OVER = 'refresh_passed_over.json'


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
    ValueError: no workdir or checkpoint to build from, another refresher is
      running, or the trainer makes the versions itself (`follow`; in a bucket
      while it is not finished).
  """
  stop = _Stop()
  previous = signal.signal(signal.SIGTERM, stop.set)
  try:
    came = processes.from_first(
      not follow or (processes.is_first() and _wait_for_workdir(path, stop))
    )
    if not came:
      return processes.SIGTERM_STATUS
    workdir = Workdir.open(path)
    where = workdir.config.refresh.where
    if where in ('in_process', 'rolling'):
      if follow:
        raise ValueError(
          f'{path}: config.refresh.where is {where}: the trainer refreshes its '
          'index itself; a refresher needs separate'
        )
      # On a disk its lock keeps the two apart.
      finished = workdir.path / 'finished.json'
      if not files.is_local(workdir.path) and not finished.exists():
        raise ValueError(
          f'{path}: config.refresh.where is {where}, and a bucket has no '
          'locks: refresh it when the run has finished'
        )
    if not workdir.config.corpus:
      raise ValueError(
        f'{path}: its config names no corpus; import it with --corpus'
      )
    with workdir.lock('refresher'), _lease(workdir, stop):
      job = _Job(workdir, stop)
      return job.follow() if follow else job.once()
  except Interrupted:
    return processes.SIGTERM_STATUS
  finally:
    signal.signal(signal.SIGTERM, previous)


class _Stop:
  """Whether SIGTERM came, to whichever of the refresher's processes.

  All of them are told, so that they give up a version together and delete it.
  """

  def __init__(self) -> None:
    self._came = threading.Event()

  def set(self, *_: object) -> None:
    processes.tell(_STOP, True)
    self._came.set()

  def is_set(self) -> bool:
    if not processes.alone() and processes.ask(_STOP):
      self._came.set()
    return self._came.is_set()

  def wait(self, seconds: float) -> bool:
    """Waits so long or until it came; whether it came."""
    end = time.monotonic() + seconds
    while not self.is_set() and (left := end - time.monotonic()) > 0:
      self._came.wait(min(left, 1.0))
    return self.is_set()


def embedder_digest(workdir: Workdir, step: int) -> str:
  """Digest of the document embedder, recorded when `step` was saved."""
  return checkpoints.read_record(workdir.path, step)['embedder_digest']


@contextlib.contextmanager
def _lease(workdir: Workdir, stop: _Stop) -> Iterator[None]:
  """Says that a refresher is there; the first process for all.

  Where the store has no locks it first waits until no other one has said so:
  one that died is missed a quarter of an hour later. Two that say so at the
  same time see it, and try again at random.
  """
  if not processes.is_first():
    yield
    return
  began, said = time.monotonic(), False
  while True:
    if files.is_local(workdir.path) or not leases.refreshers(workdir.path):
      with leases.hold(workdir.path, 'refresher') as lease:
        alone = leases.refreshers(workdir.path) == [lease.name]
        if alone or files.is_local(workdir.path):
          yield
          return
    if not said:
      processes.say(
        f'refresh: another refresher is, or was just now, running in '
        f'{workdir.path}; waits until it is gone'
      )
      said = True
    processes.beat('waiting for another refresher')
    seconds = _poll_seconds(workdir.config, began)
    if stop.wait(random.uniform(seconds, 2 * seconds)):
      raise Interrupted


class _Job:
  """One refresher: a corpus, and the checkpoints of a workdir.

  The first process follows them and tells the others what to do. Each has the
  embedder whole, over its own devices.
  """

  def __init__(self, workdir: Workdir, stop: _Stop):
    self._workdir = workdir
    self._config: Config = workdir.config
    self._stop = stop
    self._mesh = mesh_lib.local_mesh()
    self._built = -1  # the newest step that has its version
    self._made: tuple[epath.Path, int] | None = None  # where that lies
    self._passed_over = -1  # a step that can have no version
    self._problem: ValueError | None = None  # why

  def once(self) -> int:
    """Builds the version that is missing, if one is."""
    while True:
      found = processes.from_first(
        self._newest() if processes.is_first() else None
      )
      if found is None:
        return 0
      corpus = Corpus.open(self._config.corpus, found['fingerprint'])
      if self._build(found['step'], corpus):
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
    """Builds a version of each checkpoint that it comes to.

    A build that could not be written (a full disk) is reported and tried
    again, of what is the newest checkpoint by then. A checkpoint that is
    damaged, or whose version is refused, is reported and passed over.

    Raises:
      ValueError: the last checkpoint was passed over.
    """
    corpus = Corpus.open(self._config.corpus, self._pinned())
    if processes.is_first():  # an earlier refresher's, which may be mended
      (self._workdir.path / PASSED_OVER).unlink(missing_ok=True)
    places = [self._workdir.index]
    if self._workdir.shared_index:  # the trainer may have started with it
      places.append(self._workdir.shared_index)
    while True:
      step = processes.from_first(
        self._next_step(corpus, places) if processes.is_first() else None
      )
      if step is None:
        if self._stop.is_set():
          return processes.SIGTERM_STATUS
        last = processes.from_first(self._passed_over > self._built)
        if last and self._problem is not None:
          raise self._problem
        return 0
      try:
        self._build(step, corpus)
      except (build.Refused, checkpoints.Damaged) as error:
        processes.say(f'refresh: step {step} has no version: {error}')
        self._passed_over, self._problem = step, error
        if processes.is_first():
          files.write_json(self._workdir.path / PASSED_OVER, {'step': step})
      except build.Unpublished as error:
        processes.say(f'refresh: step {step} has no version: {error}')
        self._stop.wait(_RETRY_POLLS * self._config.refresh.poll_seconds)

  def _next_step(self, corpus: Corpus, places: list[epath.Path]) -> int | None:
    """Waits for a checkpoint without a version; None: none will come.

    It is the newest, and not older than any it gave before; the same again
    where a reader found its version damaged and set it aside.
    """
    began = time.monotonic()
    while not self._stop.is_set():
      # Asked in this order: a checkpoint saved after the second question
      # finds the first one answered with "not finished".
      finished = (self._workdir.path / 'finished.json').exists()
      steps = checkpoints.steps(self._workdir.path)
      newest = steps[-1] if steps else -1
      self._put_back(newest)
      wanted = newest >= self._built and newest != self._passed_over
      if wanted and (finished or newest >= self._wanted()):
        if newest > self._built or not self._still_there():
          self._made = self._published(newest, corpus, places)
          if self._made is None:
            return newest
        self._built = newest
      if finished and steps:
        return None
      processes.beat('waiting for a checkpoint')
      self._stop.wait(_poll_seconds(self._config, began))
    return None

  def _put_back(self, newest: int) -> None:
    """Forgets steps that the run no longer knows: it went on from earlier.

    A store that lists what it had a while ago is no such thing.
    """
    last = max(self._built, self._passed_over)
    if newest >= last or checkpoints.was_saved(self._workdir.path, last):
      return
    self._built, self._passed_over, self._made = -1, -1, None
    (self._workdir.path / PASSED_OVER).unlink(missing_ok=True)

  def _wanted(self) -> float:
    """The least step that the trainer wants a version of."""
    if self._config.refresh.policy != 'adaptive':
      return 0
    asked = self._request().get('step', -1)
    index = self._workdir.index
    made = [manifest.checkpoint_step for manifest in versions.readable(index)]
    return asked if asked > max(made, default=-1) else float('inf')

  def _pinned(self) -> str | None:
    """The corpus generation of the run, once the trainer has recorded it."""
    file = self._workdir.path / 'corpus.json'
    return files.read_json(file)['fingerprint'] if file.exists() else None

  def _published(
    self, step: int, corpus: Corpus, places: list[epath.Path]
  ) -> tuple[epath.Path, int] | None:
    """Where a version of the embedder of `step` and of this corpus lies."""
    want = (
      embedder_digest(self._workdir, step),
      corpus.fingerprint,
    )
    rejected = self._request().get('rejected', [])  # by the trainer: damaged
    for index in places:
      for found in versions.readable(index, index == self._workdir.index):
        if (
          (found.embedder_digest, found.corpus_fingerprint) == want
          and approximate.difference(found, self._config) is None
          and [str(index), found.version] not in rejected
        ):
          return index, found.version
    return None

  def _still_there(self) -> bool:
    """Whether the version that was made or found last was not set aside."""
    if self._made is None:
      return False
    index, version = self._made
    return version in versions.list_versions(index)

  def _request(self) -> dict[str, Any]:
    """What the trainer asks for; empty: nothing."""
    request = self._workdir.path / REQUEST
    return files.read_json(request) if request.exists() else {}

  def _restore(self, step: int) -> dict[str, Any] | None:
    """The document embedder of a step; None: it was deleted just now.

    Raises:
      checkpoints.Damaged: a process could not read it; in all of them.
    """
    processes.beat(f'restoring step {step}')
    params, problem = None, None
    try:
      params = restore_part(
        self._workdir, step, 'document_embedder', self._mesh
      )
    except (ValueError, OSError) as error:
      problem = str(error)
    problem = processes.any_problem(problem)
    if problem is None:
      return params
    if step in processes.from_first(checkpoints.steps(self._workdir.path)):
      raise checkpoints.Damaged(problem)
    processes.say(f'refresh: {problem}')
    return None

  def _build(self, step: int, corpus: Corpus) -> bool:
    """Builds a version; False: the step was deleted, a newer one is there."""
    params = self._restore(step)
    if params is None:
      return False
    manifest = build.build_version(
      self._workdir.index,
      params,
      corpus,
      self._config,
      self._mesh,
      step,
      embedder_digest(self._workdir, step),
      self._stop.is_set,
      self._workdir.shared_index,
    )
    self._built = step
    self._made = self._workdir.index, manifest.version
    processes.say(
      f'refresh: version {manifest.version} of step {step}: {manifest.rows} '
      f'blocks in {manifest.build_seconds:.1f} s'
    )
    if processes.is_first():
      versions.prune(
        self._workdir.index,
        self._config.index.keep,
        lambda: in_use(self._workdir),
      )
    return True


def in_use(workdir: Workdir) -> set[int]:
  """Versions that somebody reads, or that the trainer would resume with."""
  used = {
    checkpoints.read_record(workdir.path, step)['index_version']
    for step in checkpoints.steps(workdir.path)
  }
  swaps = files.read_lines(workdir.swaps)
  if swaps:
    used.add(swaps[-1]['version'])
  used |= leases.leased(workdir.path)
  return {version for version in used if version is not None}


def restore_part(
  workdir: Workdir, step: int, part: str, mesh: jax.sharding.Mesh
) -> Any:
  """One part of a checkpoint's parameters, straight to the devices.

  Raises:
    FileNotFoundError: the step is not there (any more).
    checkpoints.Damaged: a document embedder is not the one that was saved.
    ValueError: there is no such part.
  """
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
  restored = checkpoints.restore_part(workdir.path, step, part, abstract)
  if part == 'document_embedder':
    check_embedder(workdir, step, restored)
  return restored


def check_embedder(workdir: Workdir, step: int, params: dict[str, Any]) -> None:
  """Refuses a document embedder that is not the one that was saved.

  A checkpoint's files have no checksums, and its index would carry the digest
  that was recorded.

  Args:
    workdir: of the checkpoint.
    step: of the checkpoint.
    params: as restored.

  Raises:
    checkpoints.Damaged: names the checkpoint and both digests.
  """
  recorded = embedder_digest(workdir, step)
  found = digest.embedder_digest(params, workdir.config)
  if found != recorded:
    raise checkpoints.Damaged(
      f'{workdir.checkpoints / str(step)}: is damaged: its document embedder '
      f'has the digest {found[:12]}, {str(recorded)[:12]} was saved; delete it '
      'to use an earlier one'
    )


def _poll_seconds(config: Config, began: float) -> float:
  waited = (time.monotonic() - began) * _POLL_SHARE
  return min(max(config.refresh.poll_seconds, waited), _LONGEST_POLL_SECONDS)


def _wait_for_workdir(path: str, stop: _Stop) -> bool:
  """Whether the trainer's first checkpoint came before SIGTERM did.

  The trainer saves it when its first index version is out; until then it may
  be building that version itself.
  """
  began, said = time.monotonic(), False
  while not checkpoints.steps(path):
    if not said:
      processes.say(f'refresh: waiting for a trainer in {path}')
      said = True
    processes.beat('waiting for a trainer')
    if stop.wait(_poll_seconds(Config(), began)):  # it has no config yet
      return False
  return True
