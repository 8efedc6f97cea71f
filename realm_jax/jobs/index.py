"""What `realm index` tells about the index versions of a run."""

import dataclasses
from typing import Any

from etils import epath

from realm_jax.workdir import run, versions

_BYTES = {'float32': 4, 'bfloat16': 2}
_SHORT = (
  'version',
  'checkpoint_step',
  'kind',
  'rows',
  'dim',
  'dtype',
  'bytes',
  'recall',
  'build_seconds',
)


def list_index(
  workdir: epath.PathLike, report: bool = False
) -> list[dict[str, Any]]:
  """Describes the committed index versions, oldest first.

  Args:
    workdir: of any stage.
    report: whole manifests, digests and checksums included.

  Returns:
    One dict a version: the manifest's fields and `bytes`, of all rows.

  Raises:
    ValueError: no workdir, or a damaged manifest.
  """
  index = run.Workdir.open(workdir).index
  described = []
  for version in versions.list_versions(index):
    values = dataclasses.asdict(versions.read_manifest(index, version))
    values['bytes'] = values['rows'] * values['dim'] * _BYTES[values['dtype']]
    described.append(values if report else {key: values[key] for key in _SHORT})
  return described
