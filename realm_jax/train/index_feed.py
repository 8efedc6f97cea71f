"""The index of a training run: the first version, and the swaps."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.index import approximate, build, shards
from realm_jax.index.follow import Follower
from realm_jax.index.refresh import in_use
from realm_jax.index.scann_host import HostIndex, Searchers
from realm_jax.index.search import Index
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.workdir import checkpoints, versions
from realm_jax.workdir import rows as rows_lib
from realm_jax.workdir.digest import tree_digest
from realm_jax.workdir.metrics import SwapLog, read_swaps
from realm_jax.workdir.run import Workdir, split_init


class IndexFeed:
  """Holds the index in use and swaps it between two steps.

  Attributes:
    index: the value that goes into the step (donated) and comes out of it.
    version: its number, or None when it belongs to another workdir.
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
    """
    self._frozen = frozen
    self._workdir = workdir
    self._config = config
    self._corpus = corpus
    self._mesh = mesh
    self._swaps = None
    if processes.is_first():
      self._swaps = SwapLog(workdir.path, resumed_step)
    self._follower: Follower | None = None
    source, manifest = self._first(params, resumed_step)
    self._note(resumed_step or 0, manifest, source)
    parts = approximate.read(source, manifest, config, mesh)
    self.index: Index = build.load_index(
      corpus, config, mesh, _reader(source, manifest), manifest, parts
    )
    self._hold(parts, source, manifest)
    if config.refresh.where == 'separate' and not frozen:
      self._follower = Follower(
        workdir.index,
        self.version or 0,
        self._check,
        lambda rows: shards.local_rows(config, rows, mesh),
        config.refresh.poll_seconds,
        lambda manifest: approximate.read(
          workdir.index, manifest, config, mesh
        ),
      )

  def swap(self, step: int, params: dict[str, Any], last: bool) -> bool:
    """Swaps in a new version if there is one; True when one was made here.

    In-process, a version is made every `refresh.every` steps and after the
    last, so that the index belongs to the final parameters.
    """
    refresh = self._config.refresh
    if refresh.where == 'in_process' and not self._frozen:
      due = step > self._since and (step % refresh.every == 0 or last)
      if not due:
        return False
      manifest = self._build(params, step)
      parts = approximate.read(
        self._workdir.index, manifest, self._config, self._mesh
      )
      self._put(step, manifest, _reader(self._workdir.index, manifest), parts)
      return True
    ready = self._follower.take(step) if self._follower else None
    if ready is not None:
      rows_nE, first = ready.rows_nE, ready.start

      def read(start: int, stop: int) -> np.ndarray:
        return rows_nE[start - first : stop - first]

      self._put(step, ready.manifest, read, ready.parts)
    return False

  def staleness(self, step: int) -> dict[str, int]:
    """Metrics of a step: what the index is of, and how old."""
    return {
      'index_step': self._since,
      'staleness_steps': 0 if self._frozen else step - self._since,
    }

  def digest(self, params: dict[str, Any]) -> str:
    """What says whose index fits: that of the document embedder.

    An imported open-QA model has none, only its rows: then what the import
    recorded for them.
    """
    if 'document_embedder' in params:
      return tree_digest(params['document_embedder'])
    path, step = split_init(self._config.init_from)
    step = checkpoints.steps(path)[-1] if step is None else step
    return checkpoints.read_record(path, step)['embedder_digest']

  def close(self) -> None:
    if self._follower:
      self._follower.close()

  def _first(
    self,
    params: dict[str, Any],
    resumed_step: int | None,
  ) -> tuple[epath.Path, versions.Manifest]:
    """The version to start with: the first process finds one for all."""
    digest = self.digest(params)
    found = processes.from_first(
      self._find(digest, resumed_step) if processes.is_first() else None
    )
    if found is not None:
      index = epath.Path(found['index'])
      return index, versions.read_manifest(index, found['version'])
    if 'document_embedder' not in params:
      raise ValueError(
        f'init_from {self._config.init_from}: was imported without a document '
        f'embedder: its own index is needed, over the corpus '
        f'{self._corpus.path} and with rows_dtype '
        f'{self._config.index.rows_dtype}'
      )
    manifest = self._build(params, resumed_step or 0)
    return self._workdir.index, manifest

  def _find(
    self, digest: str, resumed_step: int | None
  ) -> dict[str, Any] | None:
    """Index and version that are there and fit, or None."""
    own, shared = self._workdir.index, self._workdir.shared_index
    swaps = [] if resumed_step is None else read_swaps(self._workdir.path)
    if resumed_step is not None and swaps:
      index, version = epath.Path(swaps[-1]['index']), swaps[-1]['version']
      record = checkpoints.read_record(self._workdir.path, resumed_step)
      if record['index_version'] is not None:  # a workdir may have moved
        index, version = own, record['index_version']
      if version in versions.list_versions(index):
        manifest = versions.read_manifest(index, version)
        self._check(manifest)
        return {'index': str(index), 'version': version}
    if resumed_step is None and self._config.index_from:
      self._check_shared()
    for index in (own,) if shared is None else (own, shared):
      for version in reversed(versions.list_versions(index)):
        manifest = versions.read_manifest(index, version)
        if self._fits(manifest) and manifest.embedder_digest == digest:
          return {'index': str(index), 'version': version}
    return None

  def _check_shared(self) -> None:
    """Refuses an index that was named but can never be used here."""
    shared = self._workdir.shared_index
    assert shared is not None
    newest = max(versions.list_versions(shared), default=None)
    if newest is None:
      raise ValueError(f'config.index_from: {shared} has no index version')
    self._check(versions.read_manifest(shared, newest))

  def _build(self, params: dict[str, Any], step: int) -> versions.Manifest:
    document = params['document_embedder']
    digest = tree_digest(document)
    document, mesh = mesh_lib.to_local(document, self._mesh)
    with self._workdir.lock('refresher'):
      manifest = build.build_version(
        self._workdir.index,
        document,
        self._corpus,
        self._config,
        mesh,
        step,
        digest,
      )
      if processes.is_first():
        used = in_use(self._workdir) | {manifest.version}
        versions.prune(self._workdir.index, self._config.index.keep, used)
    return manifest

  def _put(
    self,
    step: int,
    manifest: versions.Manifest,
    read: Callable[[int, int], np.ndarray],
    parts: approximate.Parts | None,
  ) -> None:
    self.index = build.put_version(
      self.index, self._config, manifest.rows, self._mesh, read, manifest, parts
    )
    self._hold(parts, self._workdir.index, manifest)
    self._note(step, manifest, self._workdir.index)

  @property
  def searchable(self) -> Index | HostIndex:
    """What can be searched outside of the step."""
    if self._searchers is None:
      return self.index
    return HostIndex(self.index, self._searchers, self._host_rows)

  def _hold(
    self,
    parts: approximate.Parts | None,
    source: epath.Path,
    manifest: versions.Manifest,
  ) -> None:
    """Keeps what stays with the host: searchers, and rows to train on."""
    self._searchers = parts if isinstance(parts, Searchers) else None
    self._host_rows = None
    if self._searchers is not None and self._frozen:
      self._host_rows = _reader(source, manifest)(0, manifest.rows)

  def _note(
    self, step: int, manifest: versions.Manifest, source: epath.Path
  ) -> None:
    own = source == self._workdir.index
    self.version = manifest.version if own else None
    # A version of another workdir is of this run's parameters at step 0.
    self._since = manifest.checkpoint_step if own else 0
    if self._swaps:
      self._swaps.write(
        step, manifest.version, manifest.checkpoint_step, index=str(source)
      )

  def _fits(self, manifest: versions.Manifest) -> bool:
    try:
      self._check(manifest)
    except ValueError:
      return False
    return True

  def _check(self, manifest: versions.Manifest) -> None:
    versions.check(
      manifest,
      corpus_fingerprint=self._corpus.fingerprint,
      tokenizer_digest=self._corpus.tokenizer_digest,
    )
    approximate.check(manifest, self._config)


def _reader(index: epath.Path, manifest: versions.Manifest) -> Any:
  return lambda start, stop: rows_lib.read_rows(
    index, manifest.version, start, stop
  )
