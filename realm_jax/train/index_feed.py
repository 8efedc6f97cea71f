"""The index of a training run: the first version, and the swaps."""

import dataclasses
from typing import Any

import jax
import numpy as np
from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.index import build
from realm_jax.index.follow import Follower
from realm_jax.index.refresh import in_use
from realm_jax.index.search import Index
from realm_jax.workdir import rows as rows_lib
from realm_jax.workdir import versions
from realm_jax.workdir.digest import tree_digest
from realm_jax.workdir.metrics import SwapLog
from realm_jax.workdir.run import Workdir


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
    step: int,
    resume_version: int | None,
    index_from: str,
    frozen: bool,
  ):
    """Finds or builds the version to start with.

    Args:
      workdir: of the run.
      config: of the run.
      corpus: Z.
      mesh: of the run.
      params: at `step`.
      step: steps done.
      resume_version: the one that the checkpoint was using, if any.
      index_from: a workdir whose newest version may serve, or ''.
      frozen: the document embedder does not train: nothing is refreshed.
    """
    self._frozen = frozen
    self._workdir = workdir
    self._config = config
    self._corpus = corpus
    self._mesh = mesh
    self._swaps = SwapLog(workdir.path, step if step else None)
    self._follower: Follower | None = None
    source, manifest = self._first(params, step, resume_version, index_from)
    self._note(step, manifest, source)
    self.index: Index = build.load_index(
      corpus, config, mesh, _reader(source, manifest)
    )
    if config.refresh.where == 'separate' and not frozen:
      self._follower = Follower(
        workdir.index,
        self.version or 0,
        self._check,
        config.refresh.poll_seconds,
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
      self._put(step, manifest, self._read(manifest))
      return True
    ready = self._follower.take() if self._follower else None
    if ready is not None:
      self._put(step, *ready)
    return False

  def staleness(self, step: int) -> dict[str, int]:
    """Metrics of a step: what the index is of, and how old."""
    return {
      'index_step': self._manifest.checkpoint_step,
      'staleness_steps': 0 if self._frozen else step - self._since,
    }

  def close(self) -> None:
    if self._follower:
      self._follower.close()

  def _first(
    self,
    params: dict[str, Any],
    step: int,
    resume_version: int | None,
    index_from: str,
  ) -> tuple[epath.Path, versions.Manifest]:
    own = self._workdir.index
    if resume_version in versions.list_versions(own):
      manifest = versions.read_manifest(own, resume_version)
      self._check(manifest)
      return own, manifest
    digest = tree_digest(params['document_embedder'])
    for index in (
      own,
      *([epath.Path(index_from) / 'index'] * bool(index_from)),
    ):
      for version in reversed(versions.list_versions(index)):
        manifest = versions.read_manifest(index, version)
        if self._fits(manifest) and manifest.embedder_digest == digest:
          return index, manifest
    return own, self._build(params, step)

  def _build(self, params: dict[str, Any], step: int) -> versions.Manifest:
    document = params['document_embedder']
    with self._workdir.lock('refresher'):
      manifest = build.build_version(
        self._workdir.index,
        document,
        self._corpus,
        self._config,
        self._mesh,
        step,
        tree_digest(document),
      )
      used = in_use(self._workdir) | {manifest.version}
      versions.prune(self._workdir.index, self._config.index.keep, used)
    return manifest

  def _read(self, manifest: versions.Manifest) -> np.ndarray:
    return rows_lib.read_rows(
      self._workdir.index, manifest.version, 0, manifest.rows
    )

  def _put(
    self, step: int, manifest: versions.Manifest, rows_NE: np.ndarray
  ) -> None:
    rows = build.put_version(
      self._config,
      manifest.rows,
      self._mesh,
      lambda start, stop: rows_NE[start:stop],
    )
    self.index = dataclasses.replace(self.index, rows_NE=rows)
    self._note(step, manifest, self._workdir.index)

  def _note(
    self, step: int, manifest: versions.Manifest, source: epath.Path
  ) -> None:
    own = source == self._workdir.index
    self._manifest = manifest
    self.version = manifest.version if own else None
    # A version of another workdir is of this run's parameters at step 0.
    self._since = manifest.checkpoint_step if own else 0
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
    want = self._config.index.rows_dtype
    if manifest.dtype != want:
      raise ValueError(
        f'index version {manifest.version}: rows are {manifest.dtype}, '
        f'index.rows_dtype is {want}'
      )


def _reader(index: epath.Path, manifest: versions.Manifest) -> Any:
  return lambda start, stop: rows_lib.read_rows(
    index, manifest.version, start, stop
  )
