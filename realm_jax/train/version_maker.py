"""Index versions that the trainer makes itself, between two steps."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.index import build
from realm_jax.index.refresh import in_use
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.train import refresh_policy
from realm_jax.train.first_index import Place
from realm_jax.workdir import files, versions
from realm_jax.workdir.digest import embedder_digest
from realm_jax.workdir.run import Workdir


class VersionMaker:
  """Makes versions, and holds back those of `simulate_delay`.

  Args:
    workdir: of the run.
    config: of the run.
    corpus: Z.
    mesh: of the run.
  """

  def __init__(
    self,
    workdir: Workdir,
    config: Config,
    corpus: Corpus,
    mesh: jax.sharding.Mesh,
  ):
    self._workdir, self._config = workdir, config
    self._corpus, self._mesh = corpus, mesh
    self._delay = config.refresh.delay()
    self._newest = -1  # the step that the newest version is of
    self._waiting: list[versions.Manifest] = []  # until their step has come

  def go_on(self, since: int, step: int) -> None:
    """Takes up what was there at a step.

    Args:
      since: the step that the version in use is of.
      step: of the checkpoint that the run goes on from.
    """
    self._newest = since
    if self._config.refresh.where != 'in_process':
      return
    index = self._workdir.index
    found = [
      manifest.version
      for manifest in (versions.readable(index) if processes.is_first() else ())
      if since < manifest.checkpoint_step <= step
    ]
    made = {}
    for version in processes.from_first(found):
      manifest = versions.read_manifest(index, version)
      made[manifest.checkpoint_step] = manifest
    self._newest = max(made, default=since)
    self._waiting = [made[step] for step in sorted(made)]

  def make(
    self,
    step: int,
    params: dict[str, Any],
    last: bool,
    freshness: Callable[[], float],
  ) -> bool:
    """Makes a version if the policy says so; whether it did.

    One that cannot be written or is refused is reported: training goes on.

    Args:
      step: steps done.
      params: at that step.
      last: no step follows.
      freshness: see refresh_policy.make_due.
    """
    refresh = self._config.refresh
    if step <= self._newest:
      return False
    due = last  # for those that come after a rolling refresh
    if refresh.where == 'in_process':
      due = refresh_policy.make_due(refresh, step, last, freshness)
    if not due:
      return False
    try:
      made = self.build(params, step).manifest
    except (build.Refused, build.Unpublished) as error:
      processes.say(f'step {step} has no index version: {error}')
      return False
    self._waiting.append(made)
    self._newest = step
    return True

  def ready(self, step: int) -> Place | None:
    """The newest version that is to be used from this step on, if any is."""
    place = None
    while self._waiting and (
      self._waiting[0].checkpoint_step + self._delay <= step
    ):
      place = Place(self._workdir.index, self._waiting.pop(0))
    return place

  def build(self, params: dict[str, Any], step: int) -> Place:
    """Embeds the corpus with the parameters of a step, and publishes it."""
    document = params['document_embedder']
    digest = embedder_digest(document, self._config)
    document, mesh = mesh_lib.to_local(document, self._mesh)
    with self._locked():
      manifest = build.build_version(
        self._workdir.index,
        document,
        self._corpus,
        self._config,
        mesh,
        step,
        digest,
        shared=self._workdir.shared_index,
      )
      if processes.is_first():
        waiting = {x.version for x in (*self._waiting, manifest)}
        versions.prune(
          self._workdir.index,
          self._config.index.keep,
          lambda: in_use(self._workdir) | waiting,
        )
    return Place(self._workdir.index, manifest)

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    """The refresher's lock; waits for a `realm refresh --once` that has it."""
    said = False
    with contextlib.ExitStack() as stack:
      while True:
        try:
          stack.enter_context(self._workdir.lock('refresher'))
          break
        except files.Locked as error:
          if not said:
            said = True
            processes.say(f'waits to make an index version: {error}')
          processes.beat('waiting for another refresher')
          time.sleep(self._config.refresh.poll_seconds)
      yield
