"""The device mesh and how everything is laid out over it: all in this file.

Two axes, `data` and `model`. A batch is split over `data`. Index rows and the
token table are split over both. Large parameters and their optimizer state
are split over `data` (FSDP, on many devices in groups that hold the same) and,
where `model` is larger than 1, over `model`.
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
# Parameters are split over so many devices at most; groups of them hold the
# same. By then a state is small (BERT-base: 83 MB a device); more shards
# would not divide its sizes, and over 64 devices XLA gathers on TPUs by
# summing with zeros, which sends twice as much (libtpu 0.0.42).
_MOST_SHARDS = 32


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
    ValueError: the sizes do not multiply to the number of devices, or there is
      no device of the platform that was asked for.
  """
  if devices is None:
    _check_platform()
  devices = sorted(jax.devices() if devices is None else devices, key=_place_of)
  return jax.sharding.Mesh(
    np.array(devices).reshape(mesh_shape(config, len(devices))),
    ('data', 'model'),
    axis_types=(AxisType.Auto,) * 2,
  )


def _check_platform() -> None:
  # JAX passes over a platform that it has no plugin for.
  asked = (jax.config.jax_platforms or '').split(',')[0]
  if asked not in ('', 'cpu') and jax.default_backend() == 'cpu':
    raise ValueError(
      f'JAX_PLATFORMS={jax.config.jax_platforms}: JAX found no {asked} device '
      f"here (install '.[cuda]' or '.[tpu]')"
    )


def mesh_shape(config: MeshConfig, count: int) -> tuple[int, int]:
  """Sizes of `data` and `model` on `count` devices; see make_mesh."""
  data = count // config.model if config.data == -1 else config.data
  if data * config.model != count:
    raise ValueError(
      f'mesh.data {config.data} x mesh.model {config.model} does not match '
      f'the {count} devices'
    )
  return data, config.model


def local_mesh() -> jax.sharding.Mesh:
  """All devices of this process along `data`: for work without the others."""
  _check_platform()
  return make_mesh(MeshConfig(), jax.local_devices())


def _place_of(device: jax.Device) -> tuple[int, int, int]:
  """Devices of a process side by side, and processes of a slice."""
  slice_index = getattr(device, 'slice_index', None) or 0
  return slice_index, device.process_index, device.id


def batch_slice(mesh: jax.sharding.Mesh) -> tuple[int, int]:
  """Which part of every batch this process makes.

  Processes that share a place along `data` (`model` reaches over them) make
  the same part.

  Args:
    mesh: of the run.

  Returns:
    (index, count): the index-th of `count` equal slices.

  Raises:
    ValueError: the processes' parts are not such slices.
  """
  mine = np.array(
    [
      [device.process_index == jax.process_index() for device in row]
      for row in mesh.devices
    ]
  )
  place = np.flatnonzero(mine.any(1))
  size, data = len(place), mesh.shape['data']
  if data % size or place[0] % size or place[-1] - place[0] + 1 != size:
    raise ValueError(
      f'mesh.data {data} x mesh.model {mesh.shape["model"]}: process '
      f'{jax.process_index()} holds places {place.tolist()} along data; make '
      'model a multiple or a divisor of the devices of a process'
    )
  return int(place[0]) // size, data // size


def check_batch(
  name: str,
  batch_size: int,
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
  parts: int = 1,
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


def put_whole(
  batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  """Puts a batch that every process has whole on the devices; see put_batch."""
  sharding = NamedSharding(mesh, BATCH)
  return {
    name: jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
    for name, value in batch.items()
  }


def to_local(
  tree: Any, mesh: jax.sharding.Mesh
) -> tuple[Any, jax.sharding.Mesh]:
  """Parameters of the run as this process's own, to work without the others.

  Args:
    tree: arrays over `mesh`; gathered whole on each device for a moment.
    mesh: of the run.

  Returns:
    The same values, and the mesh of this process that they are laid out over.
  """
  if jax.process_count() == 1:
    return tree, mesh
  local = local_mesh()
  whole = jax.jit(_same, out_shardings=replicated(mesh))(tree)
  own = jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
  return jax.device_put(own, tree_shardings(own, local)), local


def to_host(tree: Any) -> Any:
  """Arrays over all processes as numpy, whole in each of them."""
  if jax.process_count() > 1:
    shardings = jax.tree.map(lambda x: replicated(x.sharding.mesh), tree)
    tree = jax.jit(_same, out_shardings=shardings)(tree)
  return jax.device_get(tree)


def _same(tree: Any) -> Any:
  return tree


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


def local_rows(
  num_rows: int, mesh: jax.sharding.Mesh, total: int | None = None
) -> tuple[int, int]:
  """The rows [start, stop) of a table that this process's devices hold."""
  total = padded_rows(num_rows, mesh) if total is None else total
  size = total // mesh.size
  places = [
    place
    for place, device in enumerate(mesh.devices.flat)
    if device.process_index == jax.process_index()
  ]
  start, stop = min(places) * size, (max(places) + 1) * size
  return min(start, num_rows), min(stop, num_rows)


def first_row(n: int) -> jax.Array:
  """The first row of this device in a table of n rows on each.

  Runs inside shard_map, over arrays that are split as ROWS says.
  """
  model = jax.sharding.get_abstract_mesh().shape['model']
  place = jax.lax.axis_index('data') * model + jax.lax.axis_index('model')
  return place * n


def put_rows(
  read: Any,
  num_rows: int,
  shape: tuple[int, ...],
  dtype: Any,
  mesh: jax.sharding.Mesh,
  total: int | None = None,
  on_host: bool = False,
) -> jax.Array:
  """Builds a row table split over all devices, each reading its own rows.

  Args:
    read: `read(start, stop)` gives rows [start, stop) as numpy.
    num_rows: N, rows there are to read; the rest is padding of zeros.
    shape: shape of one row.
    dtype: of the table.
    mesh: the mesh of the run.
    total: rows with padding, a multiple of the devices; default the least.
    on_host: each device's part stays in the memory of its host.

  Returns:
    Array [total, *shape].
  """
  total = padded_rows(num_rows, mesh) if total is None else total

  def shard(index: tuple[slice, ...]) -> np.ndarray:
    start, stop, _ = index[0].indices(total)
    part = np.zeros((stop - start, *shape), dtype)
    if start < num_rows:
      end = min(stop, num_rows)
      part[: end - start] = read(start, end)
    return part

  return jax.make_array_from_callback(
    (total, *shape), rows_sharding(mesh, on_host), shard
  )


def parameter_shards(data: int) -> int:
  """Over how many devices of `data` parameters are split."""
  return max(n for n in range(1, _MOST_SHARDS + 1) if data % n == 0)


def parameter_spec(
  shape: tuple[int, ...],
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> P:
  """How a parameter (or its optimizer moment) is split.

  The last axes of a kernel are its matrix; stacked layers have one more in
  front, which the scan over layers walks along and which is never split.
  `model` takes the last axis it divides, `data` the largest that remains.

  Args:
    shape: of the parameter.
    mesh: of the run.

  Returns:
    Axes of the mesh that tree_shardings splits parameters over, whose `data`
    has `parameter_shards`.
  """
  if math.prod(shape) < _MIN_SPLIT_SIZE or len(shape) < 2:
    return P()
  axes: list[str | None] = [None] * len(shape)
  first = 1 if len(shape) > 2 else 0
  candidates = list(range(first, len(shape)))
  sizes = {
    'model': mesh.shape['model'],
    'data': parameter_shards(mesh.shape['data']),
  }
  for name, size in sizes.items():
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
  data, model = mesh.shape['data'], mesh.shape['model']
  shards = parameter_shards(data)
  groups = mesh
  if shards < data:  # the same devices in the same order
    groups = jax.sharding.Mesh(
      mesh.devices.reshape(data // shards, shards, model),
      ('copy', 'data', 'model'),
      axis_types=(AxisType.Auto,) * 3,
    )
  return jax.tree.map(
    lambda leaf: NamedSharding(groups, parameter_spec(leaf.shape, mesh)), tree
  )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, P())


def rows_sharding(
  mesh: jax.sharding.Mesh, on_host: bool = False
) -> NamedSharding:
  """Rows of the index and of the token table: split over all devices."""
  if on_host:
    return NamedSharding(mesh, ROWS, memory_kind='pinned_host')
  return NamedSharding(mesh, ROWS)
