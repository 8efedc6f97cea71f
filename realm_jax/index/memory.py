"""What an index takes of the devices' memory, and whether it fits."""

from typing import Any

import jax
import jax.numpy as jnp

from realm_jax import config as config_lib
from realm_jax.config import Config
from realm_jax.corpus.arrays import token_type
from realm_jax.index import scann_build, shards

_GIB = 2**30


def device_bytes(
  config: Config, num_rows: int, block_length: int, devices: int
) -> dict[str, int]:
  """Bytes of each part of an index on one device.

  Args:
    config: of the run.
    num_rows: N.
    block_length: wordpieces of a block.
    devices: that rows are split over.

  Returns:
    `version`: rows and codes, what another version replaces; `valid`: which
    rows may be found, and what is known of each that steps write;
    `token_table`.
  """
  options, dim = config.index, config.model.retrieval_size
  rows = -(-num_rows // devices)
  version = 0
  if options.kind != 'scann_host':
    version += rows * dim * jnp.dtype(options.rows_dtype).itemsize
  if options.kind == 'scann':
    own = -(-options.num_shards // devices)
    size = shards.size(num_rows, options.num_shards)
    leaves = scann_build.leaves_of(config, size)
    tiles = scann_build.num_tiles(size, leaves, options.soar_lambda)
    # Codes and row numbers, and a center of each tile.
    version += own * tiles * (scann_build.TILE * (dim + 4) + dim * 4)
  token_bytes = jnp.dtype(token_type(config.model.vocab_size)).itemsize
  table = rows * block_length * token_bytes
  refresh = config.refresh
  written = refresh.changes_rows() + (refresh.priority_rows > 0)
  return {
    'version': version,
    'valid': rows * (1 + 4 * written),
    'token_table': 0 if options.token_table == 'host' else table,
  }


def check(
  config: Config,
  num_rows: int,
  block_length: int,
  mesh: jax.sharding.Mesh,
  copies: int,
  free: int | None = None,
) -> None:
  """Refuses an index that the devices have no room for.

  Args:
    config: of the run.
    num_rows: N.
    block_length: wordpieces of a block.
    mesh: over which rows are split.
    copies: versions that are held at a time: 2 while one is swapped in.
    free: bytes of a device; default what its runtime says. One that does not
      say is not checked.

  Raises:
    ValueError: says by how much, and with which options it would fit.
  """
  if free is None:
    found = [_free(device) for device in mesh.local_devices]
    free = min((x for x in found if x is not None), default=None)
    if free is None:
      return

  def need(config: Config, devices: int = mesh.size) -> int:
    parts = device_bytes(config, num_rows, block_length, devices)
    return sum(parts.values()) + (copies - 1) * parts['version']

  if (needed := need(config)) <= free:
    return
  changes: tuple[dict[str, Any], ...] = (
    {'kind': 'exact'},  # without codes beside the rows
    {'kind': 'exact', 'token_table': 'host'},
    {'rows_dtype': 'bfloat16'},
    {'token_table': 'host'},
    {'rows_dtype': 'bfloat16', 'token_table': 'host'},
    {'kind': 'scann_host'},
    {'kind': 'scann_host', 'token_table': 'host'},
  )
  fitting: list[str] = []
  for change in changes:
    try:
      changed = config_lib.replace(config, index=change)
    except ValueError:
      continue  # not with the rest of this config
    different = all(change[x] != getattr(config.index, x) for x in change)
    if different and need(changed) <= free:
      fitting.append(
        ' and '.join(f'index.{name} {value}' for name, value in change.items())
      )
  devices = mesh.size
  while devices < num_rows:
    devices *= 2
    changed, words = config, f'{devices} devices'
    if config.index.kind == 'scann' and config.index.num_shards % devices:
      # A shard is on one device; of more shards each is smaller.
      changed = config_lib.replace(config, index={'num_shards': devices})
      words += f' and index.num_shards {devices}'
    if need(changed, devices) <= free:
      fitting.append(words)
      break
  held = f'{copies} versions' if copies > 1 else 'one version'
  raise ValueError(
    f'index: {num_rows} rows of {config.model.retrieval_size} dimensions '
    f'({config.index.kind}, {config.index.rows_dtype}, {held}, token_table '
    f'{config.index.token_table}) need {needed / _GIB:.2f} GiB of each of the '
    f'{mesh.size} devices, {(needed - free) / _GIB:.2f} GiB more than the '
    f'{free / _GIB:.2f} GiB that are free; '
    + (f'would fit: {"; ".join(fitting)}' if fitting else 'no option helps')
  )


def _free(device: jax.Device) -> int | None:
  stats = device.memory_stats() or {}
  if 'bytes_limit' not in stats:
    return None
  return stats['bytes_limit'] - stats.get('bytes_in_use', 0)
