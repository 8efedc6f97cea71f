"""The index of a training run: the first version, and the swaps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.index import approximate, load, memory, shards, write
from realm_jax.index.follow import Follower, Ready
from realm_jax.index.refresh import PASSED_OVER, REQUEST
from realm_jax.index.scann_host import HostIndex, Searchers
from realm_jax.index.search import Index
from realm_jax.parallel import processes
from realm_jax.train import refresh_policy
from realm_jax.train.first_index import Choice, Place
from realm_jax.train.probe import Probe
from realm_jax.train.staleness import Staleness
from realm_jax.train.used import UsedVersions
from realm_jax.train.version_maker import VersionMaker
from realm_jax.workdir import checkpoints, files, leases, versions
from realm_jax.workdir.digest import embedder_digest
from realm_jax.workdir.run import Workdir, split_init


class IndexFeed:
  """Holds the index in use and swaps it between two steps.

  Attributes:
    index: the value that goes into the step (donated) and comes out of it.
    version: its number, or None when it belongs to another workdir.
    since: the step whose document embedder made it.
    makes_versions: the trainer stops to make them.
  """

  def __init__(
    self,
    workdir: Workdir,
    config: Config,
    corpus: Corpus,
    mesh: jax.sharding.Mesh,
    params: dict[str, Any],
    resumed_step: int | None,
    frozen: bool,
    probed: dict[str, np.ndarray],
  ):
    """Finds or builds the version to start with.

    Args:
      workdir: of the run.
      config: of the run.
      corpus: Z.
      mesh: of the run.
      params: of the run's state.
      resumed_step: of the checkpoint that was resumed: its version is taken
        up again. None: a new run.
      frozen: the document embedder does not train: nothing is refreshed.
      probed: the run's first batch, this process's part: swaps are measured
        on its queries.
    """
    if not frozen and 'document_embedder' not in params:
      raise ValueError(
        f'config.train_document_embedder: init_from {config.init_from} was '
        'imported without a document embedder'
      )
    # Before a version is built that cannot be used:
    shards.padded_rows(config, corpus.num_blocks, mesh)
    self._refreshes = not frozen and config.refresh.where != 'none'
    in_process = config.refresh.where == 'in_process'
    self.makes_versions = self._refreshes and in_process
    self._copies = config.refresh.index_copies() if self._refreshes else 1
    memory.check(
      config, corpus.num_blocks, corpus.block_length, mesh, self._copies
    )
    self._workdir = workdir
    self._config = config
    self._corpus = corpus
    self._mesh = mesh
    self._used: UsedVersions | None = None
    if processes.is_first():
      self._used = UsedVersions(workdir, resumed_step)
    self._started = resumed_step or 0
    self._staleness = Staleness(config.refresh, corpus.num_blocks, frozen)
    self._probed: dict[str, float] = {}  # of the last swap, not logged yet
    self._maker = VersionMaker(workdir, config, corpus, mesh)
    self._choice = Choice(workdir, config, corpus)
    self._replayed = self._choice.replayed()
    self.index: Index
    while not self._load(self._first(params, resumed_step)):
      pass
    self._asked: int = processes.from_first(
      self._read_request() if processes.is_first() else None
    )
    if config.refresh.changes_rows():
      self.index = self._writable(self.index, self.since)
    self._maker.go_on(self.since, self._started)
    self._follower: Follower | None = None
    refresh = config.refresh
    if self._refreshes and refresh.where == 'separate' and not refresh.replay:
      self._follower = self._follow()
    self._probe: Probe | None = None
    versions_come = self._refreshes and refresh.where != 'rolling'
    on_devices = config.index.kind != 'scann_host'
    if versions_come and refresh.probe_queries and on_devices:
      self._probe = self._make_probe(probed, params)

  def swap(self, step: int, params: dict[str, Any], last: bool) -> bool:
    """Swaps in a version that is there or due (refresh_config.py).

    In-process one is made after the last step too, so that the index belongs to
    the final parameters.

    Args:
      step: steps done.
      params: at that step.
      last: no step follows.

    Returns:
      Whether this step must be saved: a version was made of it here, or is
      asked of the refresher.
    """
    if not self._refreshes:
      return False
    refresh = self._config.refresh
    if refresh.replay:
      place = self._replayed.get(step)
      if place is not None and step > self._started:
        self._swap_to(step, params, place)
      return False
    if refresh.where == 'separate':
      return self._take(step, params, last)
    made = self._maker.make(step, params, last, lambda: self._fresh(params))
    place = self._maker.ready(step)
    if place is not None:
      self._swap_to(step, params, place)
    return made

  def restore(
    self, step: int, saved: Callable[[dict[str, Any]], dict[str, jax.Array]]
  ) -> None:
    """Takes up what steps wrote into the index, if it was saved.

    Args:
      step: of the checkpoint.
      saved: gives it, with the shapes and shardings that it has here.
    """
    found = saved(
      jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        write.state(self.index),
      )
    )
    new, self.index = self.index, dataclasses.replace(self.index, **found)
    record = checkpoints.read_record(self._workdir.path, step)
    if record['index_version'] != self.version and 'step_N' in found:
      # That version is gone: only what was written into it is taken up.
      with jax.set_mesh(self._mesh):
        made = jnp.int32(self.since)
        level = self._config.refresh.writes_level()
        self.index = write.keep_newer(self.index, new, made, level)

  def step_done(self, step: int, since: int) -> None:
    """Counts a step for the staleness of `metrics`; `since` as there."""
    self._staleness.step_done(step, since)

  def metrics(
    self, step: int, since: int, window: bool = True
  ) -> dict[str, Any]:
    """What the index of a step is of, and how old.

    Args:
      step: the step.
      since: the step that the index it used was made of.
      window: with the median and the 95th percentile of the staleness over the
        steps since the last call (or since the run was started or resumed).
    """
    values = self._staleness.metrics(step, since, window)
    if window:
      values |= self._probed
      self._probed = {}
    return values

  def refresher_works_on(self, step: int) -> bool:
    """Whether a version of a saved step can come."""
    if not leases.refresher_lives(self._workdir.path):
      return False
    try:
      return files.read_json(self._workdir.path / PASSED_OVER)['step'] < step
    except FileNotFoundError:
      return True

  def digest(self, params: dict[str, Any]) -> str:
    """What says whose index fits: that of the document embedder.

    An imported open-QA model has none, only its rows: then what the import
    recorded for them.
    """
    if 'document_embedder' in params:
      return embedder_digest(params['document_embedder'], self._config)
    path, step = split_init(self._config.init_from)
    step = checkpoints.steps(path)[-1] if step is None else step
    return checkpoints.read_record(path, step)['embedder_digest']

  def close(self) -> None:
    if self._follower:
      self._follower.close()
    if self._used:
      self._used.close()

  def _load(self, place: Place) -> bool:
    """Puts the first version on the devices; False: it is damaged."""
    ready = self._fetch(place)
    if ready is None:
      return False
    self.index = load.load_index(
      self._corpus,
      self._config,
      self._mesh,
      ready.read,
      None,
      place.manifest,
      ready.parts,
      copies=self._copies,
    )
    self._hold(ready)
    self._note(self._started, place)
    return True

  def _fetch(self, place: Place) -> Ready | None:
    """This process's part of a version; None: one of them could not have it.

    In all processes: none is left alone with a program over all devices.
    """
    config, mesh = self._config, self._mesh
    if self._used:
      self._used.read(place)
    start, stop = self._local_rows(place.manifest.rows)
    ready, problem = None, None
    try:
      ready = Ready(
        place.manifest,
        start,
        place.read(start, stop),
        place.read_parts(config, mesh),
      )
    except (versions.Damaged, FileNotFoundError) as error:
      if config.refresh.replay:
        raise
      problem = str(error)
    problem = processes.any_problem(problem)
    if problem is None:
      return ready
    processes.say(f'index version passed over: {problem}')
    if self._used:
      self._choice.reject(place)
      self._used.drop()
    return None

  def _first(self, params: dict[str, Any], resumed_step: int | None) -> Place:
    """The version to start with: the first process finds one for all."""
    earlier = [step for step in self._replayed if step <= self._started]
    if earlier:
      return self._replayed[max(earlier)]
    digest = self.digest(params)
    found = processes.from_first(
      self._choice.find(digest, resumed_step) if processes.is_first() else None
    )
    if found is not None:
      index = epath.Path(found['index'])
      manifest = versions.read_manifest(index, found['version'])
      return Place(index, manifest, index == self._workdir.index)
    if 'document_embedder' not in params:
      raise ValueError(
        f'init_from {self._config.init_from}: was imported without a document '
        f'embedder: its own index is needed, over the corpus '
        f'{self._corpus.path} and with rows_dtype '
        f'{self._config.index.rows_dtype}'
      )
    return self._maker.build(params, self._started)

  def _follow(self) -> Follower:
    """Reads the refresher's versions, this process's rows, as they come."""
    config, mesh, index = self._config, self._mesh, self._workdir.index

    def suitable(manifest: versions.Manifest) -> None:
      self._choice.check(manifest)
      if manifest.checkpoint_step < self.since:
        raise ValueError(
          f'is of step {manifest.checkpoint_step}, the index in use of step '
          f'{self.since}'
        )

    return Follower(
      index,
      self.version or 0,
      suitable,
      self._local_rows,
      config.refresh.poll_seconds,
      keeps_up=config.refresh.policy == 'schedule',
      read_parts=lambda manifest: approximate.read(
        index, manifest, config, mesh
      ),
    )

  def _make_probe(
    self, probed: dict[str, np.ndarray], params: dict[str, Any]
  ) -> Probe:
    """The probe, its programs compiled: a swap must not wait for them."""
    finetuned = self._workdir.stage == 'finetune'
    config = self._config
    probe = Probe(
      probed,
      config,
      self._corpus.num_blocks,
      config.reader_beam if finetuned else config.num_candidates - 1,
      self._corpus.tokenizer.sep_id,
      self._mesh,
    )
    with jax.set_mesh(self._mesh):
      probe.compare(params, self.index, self.index)
      if config.refresh.policy == 'adaptive':
        probe.freshness(params, self.index)
    return probe

  def _take(self, step: int, params: dict[str, Any], last: bool) -> bool:
    """Takes the refresher's version; whether one is asked of it."""
    refresh = self._config.refresh
    if refresh_policy.take_due(refresh, step, self._swapped):
      ready = self._follower.take() if self._follower else None
      if ready is not None:
        place = Place(self._workdir.index, ready.manifest)
        self._put(step, params, place, ready)
    if refresh.policy != 'adaptive' or self._asked > self.since:
      return False
    if last or step == self._started or step % refresh.every:
      return False
    if self._fresh(params) >= refresh.min_overlap:
      return False
    self._asked = step
    if processes.is_first():
      files.write_json(self._workdir.path / REQUEST, {'step': step})
    return True

  def _read_request(self) -> int:
    """The step that the policy adaptive asked a version of, or -1."""
    request = self._workdir.path / REQUEST
    return files.read_json(request)['step'] if request.exists() else -1

  def _fresh(self, params: dict[str, Any]) -> float:
    assert self._probe is not None
    return self._probe.freshness(params, self.index)

  def _swap_to(self, step: int, params: dict[str, Any], place: Place) -> None:
    """Reads a version and swaps it in, if it can be read."""
    ready = self._fetch(place)
    if ready is not None:
      self._put(step, params, place, ready)

  def _put(
    self, step: int, params: dict[str, Any], place: Place, ready: Ready
  ) -> None:
    old, manifest = self.index, place.manifest
    refresh = self._config.refresh
    if refresh.where == 'rolling':  # there is no room for both
      old = dataclasses.replace(old, rows_NE=None, step_N=None, hits_N=None)
      self.index = old
    self.index = load.put_version(
      old,
      self._config,
      manifest.rows,
      self._mesh,
      ready.read,
      self._corpus.alive,
      manifest,
      ready.parts,
    )
    if refresh.where == 'rolling':
      self.index = self._writable(self.index, place.made())
    elif refresh.changes_rows():
      made = jnp.int32(place.made())
      level = refresh.writes_level()
      self.index = write.keep_newer(old, self.index, made, level)
    self._hold(ready)
    if self._probe is not None:
      self._probed = self._probe.compare(params, old, self.index)
    self._note(step, place)

  def _writable(self, index: Index, made: int) -> Index:
    hits = self._config.refresh.priority_rows > 0
    return write.writable(index, self._mesh, made, hits)

  @property
  def searchable(self) -> Index | HostIndex:
    """What can be searched outside of the step."""
    if self._searchers is None:
      return self.index
    return HostIndex(self.index, self._searchers, self._host_rows)

  def _local_rows(self, num_rows: int) -> tuple[int, int]:
    """[start, stop) of the rows that this process reads of a version."""
    on_host = self._config.index.kind == 'scann_host'
    if on_host and self._workdir.stage == 'finetune':
      return 0, num_rows  # to train on what the searchers find
    return shards.local_rows(self._config, num_rows, self._mesh)

  def _hold(self, ready: Ready) -> None:
    """Keeps what stays with the host: searchers, and rows to train on."""
    self._searchers = self._host_rows = None
    if isinstance(ready.parts, Searchers):
      self._searchers = ready.parts
      if self._workdir.stage == 'finetune':
        self._host_rows = ready.rows_nE

  def _note(self, step: int, place: Place) -> None:
    """Writes down that a version is in use from this step on."""
    own = place.index == self._workdir.index
    self.version = place.manifest.version if own else None
    self.since = place.made()
    self._swapped = step
    if self._used:
      self._used.use(step, place, **self._probed)
