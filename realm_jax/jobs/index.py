"""What `realm index` tells about the index versions of a run."""

import dataclasses
from typing import Any

from etils import epath

from realm_jax.workdir import run, versions

_BYTES = {'float32': 4, 'bfloat16': 2}
_SHORT = (
  'index',
  'version',
  'checkpoint_step',
  'kind',
  'rows',
  'dim',
  'dtype',
  'bytes',
  'recall',
  'build_seconds',
  'options',
)


def list_index(
  workdir: epath.PathLike, report: bool = False
) -> list[dict[str, Any]]:
  """Describes the committed index versions of a run, oldest first.

  One that is damaged is named on standard error.

  Args:
    workdir: of any stage.
    report: whole manifests, digests and checksums included.

  Returns:
    One dict a version: the manifest's fields, `bytes` of all rows
    and files, and `index`, the directory it lies in: the run's own or, of a run
    that has made none (fine-tuning), that of the run it started from.

  Raises:
    ValueError: no workdir.
  """
  opened = run.Workdir.open(workdir)
  index, shared = opened.index, opened.shared_index
  if shared is not None and not versions.list_versions(index):
    index = shared
  described = []
  for manifest in versions.readable(index):
    values = dataclasses.asdict(manifest)
    values['index'] = str(index)
    values['bytes'] += values['rows'] * values['dim'] * _BYTES[values['dtype']]
    described.append(values if report else {key: values[key] for key in _SHORT})
  return described
