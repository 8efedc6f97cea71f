"""A checkpoint with its index and corpus, ready to be asked."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from realm_jax.config import Config, MeshConfig
from realm_jax.corpus.store import Corpus
from realm_jax.index import approximate, load
from realm_jax.index.refresh import restore_part
from realm_jax.index.scann_host import HostIndex, Searchers
from realm_jax.index.search import Index
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.text.wordpiece import WordPiece
from realm_jax.train.state import query_embedder
from realm_jax.workdir import checkpoints, files, leases, versions
from realm_jax.workdir import rows as rows_lib
from realm_jax.workdir.run import Workdir


class Textless:
  """Stands for the corpus of an imported index that came without text."""

  fingerprint = ''
  block_length = 1

  def __init__(self, workdir: Workdir, num_blocks: int):
    self._vocab = workdir.path / 'huggingface' / 'vocab.txt'
    self.num_blocks = num_blocks

  @functools.cached_property
  def tokenizer(self) -> WordPiece:
    if not self._vocab.exists():
      raise ValueError(f'{self._vocab}: no such file: text cannot be encoded')
    return WordPiece.from_file(self._vocab)

  @property
  def tokenizer_digest(self) -> str:
    return self.tokenizer.digest

  def alive(self, start: int, stop: int) -> np.ndarray:
    return np.ones(stop - start, bool)

  def tokens(self, rows: slice) -> np.ndarray:
    return np.zeros((len(range(*rows.indices(self.num_blocks))), 1), np.uint16)

  def document(self, row: int) -> tuple[None, None]:
    del row
    return None, None

  def text(self, row: int) -> None:
    del row


@dataclasses.dataclass(frozen=True)
class Restored:
  """What evaluation, search and ask work with.

  `index` is None for a closed-book model; `index_step` with it.
  """

  workdir: Workdir
  config: Config
  mesh: jax.sharding.Mesh
  corpus: Corpus | Textless
  params: dict[str, Any]
  index: Index | HostIndex | None
  checkpoint_step: int
  index_step: int | None

  @property
  def has_null(self) -> bool:
    """Whether the null document is one of the passages it chooses from."""
    return self.workdir.stage == 'pretrain'

  @property
  def reads(self) -> bool:
    """Whether the checkpoint can answer, not only retrieve."""
    return self.why_silent is None

  @property
  def why_silent(self) -> str | None:
    """What the checkpoint lacks to answer; None: nothing."""
    if isinstance(self.corpus, Textless):
      return (
        'its index came without text (block_records.npy, or import --corpus)'
      )
    if 'reader' in self.params or self.index is None:
      return None
    return (
      f'the stage {self.workdir.stage} has no reader; fine-tune it first '
      '(realm finetune)'
    )


def restore(
  path: str,
  step: int | None = None,
  index_version: int | None = None,
  allow_stale_index: bool = False,
) -> Restored:
  """Restores a checkpoint and the index that belongs to it.

  Args:
    path: workdir of ict, pretrain or finetune.
    step: default: of a fine-tuning run the best on dev questions, else the
      newest.
    index_version: default: the newest that is not newer than the checkpoint.
    allow_stale_index: accept an index of an older document embedder.

  Returns:
    Parameters, index and corpus on the devices.

  Raises:
    ValueError: no such checkpoint or version, or the index is of another
      embedder, corpus or vocabulary; names both values.
  """
  workdir = Workdir.open(path)
  config = workdir.config
  step = chosen_step(workdir, step)
  mesh = mesh_lib.make_mesh(MeshConfig())  # not that of the training
  shapes = checkpoints.params_shapes(path, step)
  params = {part: restore_part(workdir, step, part, mesh) for part in shapes}
  if config.closed_book:
    corpus = Corpus.open(config.corpus, pinned(workdir))
    return Restored(workdir, config, mesh, corpus, params, None, step, None)
  if query_embedder(params) is None:
    raise ValueError(f'{path}: the stage {workdir.stage} has no retriever')
  params.pop('encoder', None)
  with contextlib.ExitStack() as stack:
    index_path, manifest = _hold_version(
      workdir, step, index_version, allow_stale_index, stack
    )
    index, corpus = _open_version(config, workdir, mesh, index_path, manifest)
  return Restored(
    workdir, config, mesh, corpus, params, index, step, manifest.checkpoint_step
  )


def _hold_version(
  workdir: Workdir,
  step: int,
  wanted: int | None,
  allow_stale: bool,
  stack: contextlib.ExitStack,
) -> tuple[epath.Path, versions.Manifest]:
  """find_version's choice, for all processes, kept until `stack` is closed."""
  chosen = None
  while processes.is_first() and chosen is None:
    index, manifest = find_version(workdir, step, wanted, allow_stale)
    lease = stack.enter_context(
      leases.hold(index.parent, 'reader', [manifest.version])
    )
    if manifest.version in versions.list_versions(index):
      chosen = str(index), manifest.version
    else:  # pruned before the lease was there: a newer one came
      lease.end()
  path, version = processes.from_first(chosen)
  return epath.Path(path), versions.read_manifest(path, version)


def _open_version(
  config: Config,
  workdir: Workdir,
  mesh: jax.sharding.Mesh,
  index_path: epath.Path,
  manifest: versions.Manifest,
) -> tuple[Index | HostIndex, Corpus | Textless]:
  """A version on the devices, checked, and the corpus it was made of."""
  corpus = _corpus(workdir, manifest)
  versions.check(
    manifest,
    corpus_fingerprint=corpus.fingerprint,
    tokenizer_digest=corpus.tokenizer_digest,
  )
  approximate.check(manifest, config)

  def read(start: int, stop: int) -> np.ndarray:
    return rows_lib.read_rows(index_path, manifest.version, start, stop)

  parts = approximate.read(index_path, manifest, config, mesh)
  alive = _alive_now(config, corpus)
  index = load.load_index(corpus, config, mesh, read, alive, manifest, parts)
  if isinstance(parts, Searchers):
    rows = manifest.rows
    index = HostIndex(index, parts, read(0, rows), alive(0, rows))
  return index, corpus


def _alive_now(
  config: Config, corpus: Corpus | Textless
) -> Callable[[int, int], np.ndarray]:
  """Which rows may be found: none that was removed since they were indexed."""
  if isinstance(corpus, Textless):
    return corpus.alive
  newest = Corpus.open(config.corpus)
  return lambda start, stop: (
    corpus.alive(start, stop) & newest.alive(start, stop)
  )


def chosen_step(workdir: Workdir, step: int | None) -> int:
  """`step` if it is there; without one the best, else the newest."""
  steps = checkpoints.steps(workdir.path)
  if not steps:
    raise ValueError(f'{workdir.checkpoints}: no checkpoint yet')
  if step is None:
    best = (
      checkpoints.best_step(workdir.path)
      if workdir.stage == 'finetune'
      else None
    )
    return steps[-1] if best is None else best
  if step not in steps:
    raise ValueError(f'--step {step}: {workdir.checkpoints} has {steps}')
  return step


def _is_of(workdir: Workdir, manifest: versions.Manifest) -> bool:
  """Whether a version was made of the step of this run that it names."""
  try:
    record = checkpoints.read_record(workdir.path, manifest.checkpoint_step)
  except ValueError:  # no such step was saved here
    return False
  return record['embedder_digest'] == manifest.embedder_digest


def _corpus(workdir: Workdir, manifest: versions.Manifest) -> Corpus | Textless:
  """The generation that an index version was made of."""
  if not workdir.config.corpus and not manifest.corpus_fingerprint:
    return Textless(workdir, manifest.rows)
  corpus = Corpus.open(workdir.config.corpus, manifest.corpus_fingerprint)
  trained = pinned(workdir)
  if not corpus.descends_from(trained):
    raise ValueError(
      f'index version {manifest.version}: corpus {corpus.fingerprint} does '
      f'not come from that of the run, {trained}'
    )
  return corpus


def pinned(workdir: Workdir) -> str:
  """Fingerprint of the corpus generation that the run was trained on."""
  return files.read_json(workdir.path / 'corpus.json')['fingerprint']


def find_version(
  workdir: Workdir,
  step: int,
  wanted: int | None = None,
  allow_stale: bool = False,
) -> tuple[epath.Path, versions.Manifest]:
  """The index version to use with a checkpoint, and where it lies.

  Args:
    workdir: of the checkpoint.
    step: of the checkpoint.
    wanted: a version by its number; None: the newest that fits.
    allow_stale: take an index of an older document embedder.

  Raises:
    ValueError: there is none; names what there is.
  """
  digest = checkpoints.read_record(workdir.path, step)['embedder_digest']
  # An embedder that did not train since: the index it started with serves.
  places = [p for p in (workdir.index, workdir.shared_index) if p is not None]
  found = [
    (place, manifest)
    for place in places
    for manifest in reversed(versions.readable(place))
  ]
  if wanted is not None:
    there = sorted({manifest.version for _, manifest in found})
    found = [pair for pair in found if pair[1].version == wanted]
    if not found:
      raise ValueError(
        f'--index_version {wanted}: {" and ".join(map(str, places))} has '
        f'{there}'
      )
  fitting = [pair for pair in found if pair[1].embedder_digest == digest]
  if fitting:
    return fitting[0]
  own = [pair for pair in found if pair[0] == workdir.index]
  older = [
    pair
    for pair in own
    if pair[1].checkpoint_step <= step and _is_of(workdir, pair[1])
  ]
  if older and allow_stale:
    return older[0]
  if not own:
    raise ValueError(
      f'{workdir.index}: no index version yet; run `realm refresh --workdir '
      f'{workdir.path}`'
    )
  newest = own[0][1]
  hint = ', or give --allow_stale_index' if older else ''
  raise ValueError(
    f'{workdir.index}: version {newest.version} is of step '
    f'{newest.checkpoint_step} (embedder {newest.embedder_digest[:12]}), the '
    f'checkpoint is step {step} (embedder {str(digest)[:12]}); run `realm '
    f'refresh --workdir {workdir.path}`{hint}'
  )
