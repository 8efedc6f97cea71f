"""The device mesh and how everything is laid out over it: all in this file.

Two axes, `data` and `model`. A batch is split over `data`. Index rows and the
token table are split over both. Large parameters and their optimizer state
are split over `data` (FSDP) and, where `model` is larger than 1, over `model`.
Axes are automatic (XLA inserts the collectives); what must be laid out by hand
(search, gather) is a `jax.shard_map` over this mesh.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.config import MeshConfig

ROWS = P(('data', 'model'))
BATCH = P('data')
# A smaller parameter is kept whole on every device: splitting it would cost
# more in latency than it saves in memory.
_MIN_SPLIT_SIZE = 2**16


def make_mesh(
  config: MeshConfig, devices: list[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """The mesh of a run.

  Args:
    config: sizes of the axes; `data` -1 takes all devices that are left.
    devices: default all devices of all processes.

  Returns:
    A mesh with axes ('data', 'model').

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  count = len(devices)
  data = count // config.model if config.data == -1 else config.data
  if data * config.model != count:
    raise ValueError(
      f'mesh.data {config.data} x mesh.model {config.model} does not match '
      f'the {count} devices'
    )
  return jax.sharding.Mesh(
    np.array(devices).reshape(data, config.model),
    ('data', 'model'),
    axis_types=(AxisType.Auto,) * 2,
  )


def check_batch(
  name: str, batch_size: int, mesh: jax.sharding.Mesh, parts: int = 1
) -> None:
  """Raises ValueError when a part cannot be split over the `data` axis."""
  data = mesh.shape['data']
  if batch_size % (data * parts):
    by = f' times micro_batches {parts}' if parts > 1 else ''
    raise ValueError(
      f'{name}: {batch_size} is not a multiple of mesh.data {data}{by}'
    )


def put_batch(
  batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  """Puts this process's part of a batch on its devices.

  Args:
    batch: arrays whose first axis is this process's slice of the batch.
    mesh: the mesh of the run.

  Returns:
    Global arrays, first axis split over `data`.
  """
  sharding = NamedSharding(mesh, BATCH)
  return {
    name: jax.make_array_from_process_local_data(sharding, value)
    for name, value in batch.items()
  }


def split_batch(x: jax.Array, axis: int = 0) -> jax.Array:
  """Keeps the batch axis of an activation split over `data`.

  Without it XLA may follow the parameters' split instead, and gather whole
  activations. A no-op outside a mesh, and for a batch that `data` does not
  divide (the null document).
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or x.shape[axis] % mesh.shape['data']:
    return x
  return jax.lax.with_sharding_constraint(x, P(*(None,) * axis, 'data'))


def padded_rows(num_rows: int, mesh: jax.sharding.Mesh) -> int:
  """Rows of a table after padding to a multiple of the devices."""
  return math.ceil(num_rows / mesh.size) * mesh.size


def put_rows(
  read: Any,
  num_rows: int,
  shape: tuple[int, ...],
  dtype: Any,
  mesh: jax.sharding.Mesh,
) -> jax.Array:
  """Builds a row table split over all devices, each reading its own rows.

  Args:
    read: `read(start, stop)` gives rows [start, stop) as numpy.
    num_rows: N, rows there are to read; the rest is padding of zeros.
    shape: shape of one row.
    dtype: of the table.
    mesh: the mesh of the run.

  Returns:
    Array [N rounded up to the devices, *shape].
  """
  total = padded_rows(num_rows, mesh)

  def shard(index: tuple[slice, ...]) -> np.ndarray:
    start, stop, _ = index[0].indices(total)
    part = np.zeros((stop - start, *shape), dtype)
    if start < num_rows:
      end = min(stop, num_rows)
      part[: end - start] = read(start, end)
    return part

  return jax.make_array_from_callback(
    (total, *shape), rows_sharding(mesh), shard
  )


def parameter_spec(shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> P:
  """How a parameter (or its optimizer moment) is split.

  The last axes of a kernel are its matrix; stacked layers have one more in
  front, which the scan over layers walks along and which is never split.
  `model` takes the last axis it divides, `data` the largest that remains.
  """
  if math.prod(shape) < _MIN_SPLIT_SIZE or len(shape) < 2:
    return P()
  axes: list[str | None] = [None] * len(shape)
  first = 1 if len(shape) > 2 else 0
  candidates = list(range(first, len(shape)))
  for name in ('model', 'data'):
    size = mesh.shape[name]
    if size == 1:
      continue
    fitting = [
      i for i in candidates if axes[i] is None and shape[i] % size == 0
    ]
    if not fitting:
      continue
    if name == 'model':
      axes[fitting[-1]] = name
    else:
      axes[max(fitting, key=lambda i: shape[i])] = name
  return P(*axes)


def tree_shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Shardings of a state: parameters and moments split, scalars whole."""
  return jax.tree.map(
    lambda leaf: NamedSharding(mesh, parameter_spec(leaf.shape, mesh)), tree
  )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, P())


def rows_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Rows of the index and of the token table: split over all devices."""
  return NamedSharding(mesh, ROWS)
