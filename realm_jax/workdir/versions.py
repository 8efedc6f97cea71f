"""Versions of the index on disk: which there are, and of what.

`index/<version>/` holds `rows/` (see rows.py) and `manifest.json`, written
last: the mark that the version exists. A version without it is never looked
at. Deleting starts with it.
"""

import contextlib
import dataclasses
import json
import sys
import zlib
from collections.abc import Callable
from typing import Any

from etils import epath

from realm_jax.workdir import files

FORMAT_VERSION = 2
_SET_ASIDE = 'damaged.json'  # what the manifest of a damaged version becomes
_HIDDEN = 'hidden.json'  # while it is looked whether somebody uses it
_READABLE = (1, 2)  # 1: exact rows, without options and files


class Damaged(ValueError):
  """A committed version holds something else than was written."""


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What an index version is, and of what.

  Attributes:
    version: the number of its directory.
    checkpoint_step: the step whose document embedder made the rows.
    embedder_digest: digest.embedder_digest of that embedder.
    corpus_fingerprint: of the corpus generation that was embedded.
    tokenizer_digest: of its vocabulary.
    kind: of index: exact, ...
    rows: N, one for each row of the corpus.
    dim: E.
    dtype: float32 or bfloat16.
    chunk_rows: rows a chunk.
    checksums: array name to the crc32 of each chunk's bytes.
    recall: measured against exact search (fractions), or None.
    build_seconds: what it took.
    options: of the kind, as the config names them, with what was measured.
    files: what the kind has beside the rows: path in the version's directory
      to the crc32 of the file.
    bytes: of these files.
  """

  version: int
  checkpoint_step: int
  embedder_digest: str
  corpus_fingerprint: str
  tokenizer_digest: str
  kind: str
  rows: int
  dim: int
  dtype: str
  chunk_rows: int
  checksums: dict[str, list[int]]
  recall: dict[str, float] | None
  build_seconds: float
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  files: dict[str, int] = dataclasses.field(default_factory=dict)
  bytes: int = 0


def directory(index: epath.PathLike, version: int) -> epath.Path:
  """The directory of a version; `index` is Workdir.index."""
  return epath.Path(index) / f'{version:06d}'


def list_versions(index: epath.PathLike) -> list[int]:
  """Committed versions, oldest first; cheap enough to poll."""
  return [
    version
    for version in _directories(index)
    if (directory(index, version) / 'manifest.json').exists()
  ]


def next_version(
  index: epath.PathLike, shared: epath.PathLike | None = None
) -> int:
  """The number after every version that is there, committed or not.

  Args:
    index: Workdir.index.
    shared: Workdir.shared_index, whose versions may serve beside the own: a
      number says which is meant.
  """
  taken = _directories(index)
  if shared is not None:
    taken += list_versions(shared)
  return max(taken, default=0) + 1


def read_manifest(index: epath.PathLike, version: int) -> Manifest:
  """Reads the manifest of a committed version.

  Raises:
    FileNotFoundError: the version is not committed, or deleted.
    Damaged: the manifest is not what was written, or of another version.
    ValueError: it is of another format.
  """
  path = directory(index, version) / 'manifest.json'
  if not path.exists():
    raise FileNotFoundError(
      f'{path.parent}: no such index version; has {list_versions(index)}'
    )
  try:
    values = files.read_json(path)
  except ValueError as error:
    raise Damaged(str(error)) from error
  if not isinstance(values, dict):
    raise Damaged(f'{path}: expected a JSON object')
  found = values.pop('crc32', None)
  if found != _checksum(values):
    raise Damaged(
      f'{path}: is damaged (crc32 {_checksum(values)}, it says {found})'
    )
  if values.get('format_version') not in _READABLE:
    raise ValueError(
      f'{path}: format_version {values.get("format_version")}, this program '
      f'reads {" and ".join(map(str, _READABLE))}'
    )
  del values['format_version']
  manifest = Manifest(**values)
  if manifest.version != version:
    raise Damaged(f'{path}: is the manifest of version {manifest.version}')
  return manifest


def newest_options(
  index: epath.PathLike, kind: str, num_shards: int
) -> dict[str, Any]:
  """Options of the newest version of this kind; none: empty."""
  for manifest in reversed(readable(index)):
    have = manifest.kind, manifest.options.get('num_shards')
    if have == (kind, num_shards):
      return manifest.options
  return {}


def readable(index: epath.PathLike, ours: bool = False) -> list[Manifest]:
  """The manifests of the committed versions, oldest first.

  One that is damaged is named on standard error and left out: it must not keep
  a job from its work with the others.

  Args:
    index: Workdir.index.
    ours: of the run that asks: what is damaged is set aside.
  """
  found = []
  for version in list_versions(index):
    try:
      found.append(read_manifest(index, version))
    except FileNotFoundError:
      continue  # deleted just now
    except ValueError as error:
      print(f'index version {version} passed over: {error}', file=sys.stderr)
      if ours and isinstance(error, Damaged):
        set_aside(index, version)
  return found


def write_manifest(index: epath.PathLike, manifest: Manifest) -> None:
  """Commits a version: all its other files must be on disk."""
  values = {'format_version': FORMAT_VERSION, **dataclasses.asdict(manifest)}
  values['crc32'] = _checksum(values)
  files.sync_directory(index)
  files.write_json(directory(index, manifest.version) / 'manifest.json', values)


def check(
  manifest: Manifest,
  *,
  corpus_fingerprint: str,
  tokenizer_digest: str,
  embedder_digest: str | None = None,
) -> None:
  """Refuses an index of another corpus, vocabulary or embedder.

  Args:
    manifest: of the version that is to be used.
    corpus_fingerprint: of the corpus at hand.
    tokenizer_digest: of its vocabulary.
    embedder_digest: recorded when manifest.checkpoint_step was saved
      (checkpoints.read_record); None: not compared.

  Raises:
    ValueError: one differs; names both values.
  """
  for name, want in (
    ('corpus_fingerprint', corpus_fingerprint),
    ('tokenizer_digest', tokenizer_digest),
    ('embedder_digest', embedder_digest),
  ):
    have = getattr(manifest, name)
    if want is not None and want != have:
      raise ValueError(
        f'index version {manifest.version}: {name} is {have}, expected {want}'
      )


def remove_uncommitted(index: epath.PathLike) -> list[int]:
  """Deletes what writers left that died; only under the refresher's lock.

  A version that was hidden when its pruner died comes back.
  What was set aside stays until there is a newer version: its number must not
  be given to another one.
  """
  committed = set(list_versions(index))
  newest = max(committed, default=0)
  left = []
  for version in _directories(index):
    hidden = directory(index, version) / _HIDDEN
    if hidden.exists():  # by one that was killed before it had looked again
      hidden.rename(hidden.parent / 'manifest.json')
      continue
    damaged = directory(index, version) / _SET_ASIDE
    if version not in committed and (version < newest or not damaged.exists()):
      left.append(version)
  for version in left:
    directory(index, version).rmtree()
  return left


def set_aside(index: epath.PathLike, version: int) -> None:
  """Takes back a version that was found damaged: it is not committed any more.

  Its refresher makes another one.
  """
  path = directory(index, version)
  # Another process may have done it, or deleted the version.
  with contextlib.suppress(FileNotFoundError):
    (path / 'manifest.json').replace(path / _SET_ASIDE)
    files.sync_directory(path)


def prune(
  index: epath.PathLike, keep: int, in_use: Callable[[], set[int]]
) -> list[int]:
  """Deletes old versions; only under the refresher's lock.

  Args:
    index: Workdir.index.
    keep: how many of the newest committed versions stay.
    in_use: tells which versions stay however old they are. Asked again when
      one is hidden: a reader that came in between finds it again.

  Returns:
    The versions deleted.
  """
  used, deleted = in_use(), []
  for version in list_versions(index)[:-keep]:
    if version in used:
      continue
    path = directory(index, version)
    manifest = path / 'manifest.json'
    try:
      hidden = manifest.rename(path / _HIDDEN)  # whatever is in it
    except FileNotFoundError:
      continue  # a reader has set it aside just now
    files.sync_directory(path)
    if version in in_use():
      hidden.rename(manifest)
      files.sync_directory(path)
      continue
    hidden.unlink()  # from here on it does not come back
    path.rmtree()
    deleted.append(version)
  return deleted


def _directories(index: epath.PathLike) -> list[int]:
  index = epath.Path(index)
  if not index.exists():
    return []
  return sorted(int(c.name) for c in index.iterdir() if c.name.isdigit())


def _checksum(values: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(values, sort_keys=True).encode())
