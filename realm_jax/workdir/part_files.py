"""What an index version has beside its rows: files a kind makes, a shard each.

They lie in the version's directory and are there before its manifest is, which
has the checksum of every one of them.
"""

import zlib

from etils import epath

from realm_jax.workdir import files, versions


def write(path: epath.PathLike, name: str, data: bytes) -> int:
  """Writes a file of a version that is being made.

  Args:
    path: versions.directory.
    name: of the file in it; may lie deeper.
    data: what it holds.

  Returns:
    Its crc32, for the manifest.
  """
  file = epath.Path(path) / name
  file.parent.mkdir(parents=True, exist_ok=True)
  files.write_bytes(file, data)
  return zlib.crc32(data)


def write_directory(
  path: epath.PathLike, name: str, local: epath.PathLike
) -> dict[str, int]:
  """Copies the files of a local directory into a version as `name`."""
  return {
    f'{name}/{file.name}': write(path, f'{name}/{file.name}', file.read_bytes())
    for file in sorted(epath.Path(local).iterdir())
  }


def read(
  index: epath.PathLike, manifest: versions.Manifest, name: str
) -> bytes:
  """Reads a file of a committed version.

  Raises:
    FileNotFoundError: the version was deleted.
    versions.Damaged: the file is missing, or is not the one that was written.
  """
  path = versions.directory(index, manifest.version)
  file = path / name
  try:
    data = file.read_bytes()
  except FileNotFoundError as error:
    if not (path / 'manifest.json').exists():
      raise FileNotFoundError(f'{path}: deleted while it was read') from error
    raise versions.Damaged(f'{file}: the file is missing') from error
  want = manifest.files.get(name)
  if zlib.crc32(data) != want:
    raise versions.Damaged(
      f'{file}: is not what was written: crc32 is {zlib.crc32(data)}, the '
      f'manifest has {want}'
    )
  return data


def read_directory(
  index: epath.PathLike,
  manifest: versions.Manifest,
  name: str,
  local: epath.PathLike,
) -> None:
  """Copies the files of a version's directory `name` to a local one."""
  for file in manifest.files:
    folder, _, last = file.rpartition('/')
    if folder == name:
      (epath.Path(local) / last).write_bytes(read(index, manifest, file))
