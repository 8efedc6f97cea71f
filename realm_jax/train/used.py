"""The versions that a run uses: written down, and kept while they are."""

from typing import Any

from realm_jax.train.first_index import Place
from realm_jax.workdir import leases
from realm_jax.workdir.metrics import SwapLog
from realm_jax.workdir.run import Workdir


class UsedVersions:
  """Logs swaps, and leases what is in use and what is being read.

  In the first process alone; the others read under its leases.

  Args:
    workdir: of the run.
    resumed_step: of the checkpoint that was resumed; None: a new run.
  """

  def __init__(self, workdir: Workdir, resumed_step: int | None):
    self._swaps = SwapLog(workdir.path, resumed_step)
    self._lease: leases.Lease | None = None  # of the version in use
    self._coming: leases.Lease | None = None  # of one that is read

  def read(self, place: Place) -> None:
    """Keeps a version that is about to be read."""
    self._coming = _lease(place)

  def drop(self) -> None:
    """Gives up the version that was being read."""
    if self._coming:
      self._coming.end()
      self._coming = None

  def use(self, step: int, place: Place, **values: Any) -> None:
    """Writes down that a version is in use from this step on.

    The one before it may be deleted then.

    Args:
      step: steps done.
      place: of the version.
      **values: more about the swap.
    """
    coming, self._coming = self._coming or _lease(place), None
    self.close()
    self._lease = coming
    manifest = place.manifest
    self._swaps.write(
      step,
      manifest.version,
      manifest.checkpoint_step,
      index=str(place.index),
      **values,
    )

  def close(self) -> None:
    if self._lease:
      self._lease.end()


def _lease(place: Place) -> leases.Lease:
  lease = leases.Lease(place.index.parent, 'reader')
  lease.take([place.manifest.version])
  return lease
