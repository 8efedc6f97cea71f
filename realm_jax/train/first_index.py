"""Which index version a training run starts with, or goes on with."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.index import approximate
from realm_jax.index.refresh import REQUEST
from realm_jax.parallel import processes
from realm_jax.workdir import checkpoints, files, leases, versions
from realm_jax.workdir import rows as rows_lib
from realm_jax.workdir.metrics import read_swaps
from realm_jax.workdir.run import Workdir


@dataclasses.dataclass(frozen=True)
class Place:
  """A version, and where it lies.

  Attributes:
    index: the directory of versions.
    manifest: of the version.
    ours: its checkpoint step counts this run's steps (a version of another
      workdir is of this run's parameters at step 0).
  """

  index: epath.Path
  manifest: versions.Manifest
  ours: bool = True

  def made(self) -> int:
    """The step of this run whose parameters made it."""
    return self.manifest.checkpoint_step if self.ours else 0

  def read(self, start: int, stop: int) -> np.ndarray:
    """Rows, each chunk checked against the manifest."""
    return rows_lib.read_rows(self.index, self.manifest.version, start, stop)

  def read_parts(
    self, config: Config, mesh: jax.sharding.Mesh
  ) -> approximate.Parts | None:
    """What the config's kind of index has beside rows; see approximate."""
    return approximate.read(self.index, self.manifest, config, mesh)


class Choice:
  """The versions that a run may use.

  Args:
    workdir: of the run.
    config: of the run.
    corpus: Z.
  """

  def __init__(self, workdir: Workdir, config: Config, corpus: Corpus):
    self._workdir, self._config, self._corpus = workdir, config, corpus
    self._rejected: set[tuple[str, int]] = set()

  def reject(self, place: Place) -> None:
    """Never chooses it again: it is damaged or gone. Ours is set aside."""
    self._rejected.add((str(place.index), place.manifest.version))
    if place.index == self._workdir.index:
      versions.set_aside(place.index, place.manifest.version)

  def find(
    self, digest: str, resumed_step: int | None
  ) -> dict[str, Any] | None:
    """Index and version that are there and fit, or None: one must be built.

    Args:
      digest: of the document embedder.
      resumed_step: of the checkpoint that was resumed. Its version is taken up
        again; where that is gone or damaged, the newest of this run's that is
        not of a later step; without any, a refresher at work is waited for.
    """
    said = False
    while True:
      found = self._there(digest, resumed_step)
      if found or resumed_step is None:
        return found
      if not leases.refresher_lives(self._workdir.path):
        return None
      if not said:
        said = True
        processes.say('no index version is left: waits for the refresher')
        request = self._workdir.path / REQUEST
        rejected = sorted(self._rejected)
        files.write_json(request, {'step': resumed_step, 'rejected': rejected})
      processes.beat('waiting for an index version')
      time.sleep(self._config.refresh.poll_seconds)

  def replayed(self) -> dict[int, Place]:
    """The swaps of `refresh.replay`, by step.

    Raises:
      ValueError: a version is not there any more, or must not be used here.
    """
    if not self._config.refresh.replay:
      return {}
    log = epath.Path(self._config.refresh.replay)
    own = log.parent / 'index'
    places: dict[int, Place] = {}
    used = None
    for line in read_swaps(log.parent):
      # Where that run was resumed it took up the version that it had.
      if used == (used := (line['index'], line['version'])):
        continue
      index, version = epath.Path(line['index']), line['version']
      # What that run took from elsewhere is of its parameters at step 0.
      ours = index.name == own.name and index.parent.name == own.parent.name
      if ours:
        index = own  # a workdir may have moved
      if version not in versions.list_versions(index):
        raise ValueError(
          f'refresh.replay {log}: version {version} of step {line["step"]} is '
          f'not in {index}; keep more of them (index.keep)'
        )
      manifest = versions.read_manifest(index, version)
      self.check(manifest, index)
      places[line['step']] = Place(index, manifest, ours)
    if not places:
      raise ValueError(f'refresh.replay {log}: has no swaps')
    return places

  def _there(
    self, digest: str, resumed_step: int | None
  ) -> dict[str, Any] | None:
    own, shared = self._workdir.index, self._workdir.shared_index
    delay = self._config.refresh.delay()
    if resumed_step is not None:
      used = self._used_at(resumed_step)
      if used is not None:
        return used
    elif self._config.index_from:
      self._check_shared()
    for index in (own,) if shared is None else (own, shared):
      for manifest in reversed(versions.readable(index, index == own)):
        if (str(index), manifest.version) in self._rejected:
          continue
        earlier = (
          index == own
          and resumed_step is not None
          and manifest.checkpoint_step + delay <= resumed_step
        )
        if not (earlier or manifest.embedder_digest == digest):
          continue
        if self._fits(manifest, index):
          return {'index': str(index), 'version': manifest.version}
    return None

  def _used_at(self, step: int) -> dict[str, Any] | None:
    """The version that a checkpoint was saved with, if it is there."""
    swaps = read_swaps(self._workdir.path)
    if not swaps:
      return None
    index, version = epath.Path(swaps[-1]['index']), swaps[-1]['version']
    record = checkpoints.read_record(self._workdir.path, step)
    if record['index_version'] is not None:  # a workdir may have moved
      index, version = self._workdir.index, record['index_version']
    gone = version not in versions.list_versions(index)
    if gone or (str(index), version) in self._rejected:
      return None
    try:
      manifest = versions.read_manifest(index, version)
    except versions.Damaged:
      return None
    self.check(manifest, index)
    return {'index': str(index), 'version': version}

  def check(
    self, manifest: versions.Manifest, index: epath.Path | None = None
  ) -> None:
    """Raises ValueError for a version that must not be used here.

    Args:
      manifest: of the version.
      index: where it lies; None: in this run's own index. Its embedder must be
        the one recorded in that workdir when its checkpoint was saved.
    """
    path = (index or self._workdir.index).parent
    record = checkpoints.read_record(path, manifest.checkpoint_step)
    versions.check(
      manifest,
      corpus_fingerprint=self._corpus.fingerprint,
      tokenizer_digest=self._corpus.tokenizer_digest,
      embedder_digest=record['embedder_digest'],
    )
    approximate.check(manifest, self._config)

  def _fits(self, manifest: versions.Manifest, index: epath.Path) -> bool:
    try:
      self.check(manifest, index)
    except ValueError:
      return False
    return True

  def _check_shared(self) -> None:
    """Refuses an index that was named but can never be used here."""
    shared = self._workdir.shared_index
    assert shared is not None
    newest = max(versions.list_versions(shared), default=None)
    if newest is None:
      raise ValueError(f'config.index_from: {shared} has no index version')
    self.check(versions.read_manifest(shared, newest), shared)
