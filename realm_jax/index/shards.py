"""The fixed shards of an approximate index, whoever holds them.

Rows are cut into `index.num_shards` parts of one size; the last ones may be
short, or empty. A tree belongs to one of them.
"""

import jax
import numpy as np

from realm_jax.config import Config
from realm_jax.parallel import mesh as mesh_lib

_NONE = float(np.finfo(np.float32).min)  # exact as float32 and as JSON
_PARTITION = 8  # so many times k are not sorted whole


def size(num_rows: int, num_shards: int) -> int:
  """Rows of a shard."""
  return -(-num_rows // num_shards)


def bounds(shard: int, num_rows: int, num_shards: int) -> tuple[int, int]:
  """The rows [start, stop) of a shard."""
  rows = size(num_rows, num_shards)
  return min(shard * rows, num_rows), min((shard + 1) * rows, num_rows)


def owned(num_shards: int) -> range:
  """The shards that this process builds, and serves from its memory."""
  place, count = jax.process_index(), jax.process_count()
  return range(num_shards * place // count, num_shards * (place + 1) // count)


def padded_rows(config: Config, num_rows: int, mesh: jax.sharding.Mesh) -> int:
  """Rows of a table on the devices: whole shards, or whole devices.

  Raises:
    ValueError: a shard would be cut.
  """
  if config.index.kind != 'scann':
    return mesh_lib.padded_rows(num_rows, mesh)
  shards = config.index.num_shards
  if shards % mesh.size:
    raise ValueError(
      f'index.num_shards: {shards}, must be a multiple of the {mesh.size} '
      'devices'
    )
  return shards * size(num_rows, shards)


def finite(score_BK: np.ndarray) -> list[list[float]]:
  """Scores as JSON, which has no infinity; `best` takes them back."""
  return np.maximum(score_BK, _NONE).tolist()


def local_rows(
  config: Config, num_rows: int, mesh: jax.sharding.Mesh
) -> tuple[int, int]:
  """The rows [start, stop) of a version that this process's devices hold."""
  if config.index.kind == 'scann_host':
    return 0, 0
  total = padded_rows(config, num_rows, mesh)
  return mesh_lib.local_rows(num_rows, mesh, total)


def best(
  parts: list[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
  """The k best of several results, equal scores in order of row.

  Args:
    parts: score_BK and row_BK of each; -inf and -1: none.
    k: how many.

  Returns:
    score_BK and row_BK, filled up with -inf and -1.
  """
  score_BK, row_BK = (np.concatenate(x, 1) for x in zip(*parts, strict=True))
  missing = ((0, 0), (0, max(k - score_BK.shape[1], 0)))
  score_BK = np.pad(score_BK, missing, constant_values=-np.inf)
  row_BK = np.pad(row_BK, missing, constant_values=-1)
  if score_BK.shape[1] > _PARTITION * k:
    # Of many the k best, and all that are as good as the last of them.
    last_B1 = -np.partition(-score_BK, k - 1, 1)[:, k - 1 : k]
    most = int((score_BK >= last_B1).sum(1).max())
    place_BK = np.argpartition(-score_BK, most - 1, 1)[:, :most]
    score_BK = np.take_along_axis(score_BK, place_BK, 1)
    row_BK = np.take_along_axis(row_BK, place_BK, 1)
  place_BK = np.lexsort((row_BK, -score_BK), axis=1)[:, :k]
  score_BK = np.take_along_axis(score_BK, place_BK, 1)
  row_BK = np.take_along_axis(row_BK, place_BK, 1)
  none_BK = score_BK <= _NONE
  return np.where(none_BK, -np.inf, score_BK), np.where(none_BK, -1, row_BK)
