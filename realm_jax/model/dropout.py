"""Dropout whose mask is split as its input is.

A generator's bits come out whole on every device, however the array that they
mask is split: at the paper's size 4.8 GB of them. Here the bit of an element is
a hash of its place and of the key. Each device makes its own, in the loop that
uses them, and the mask does not depend on how the array is split.
"""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Drops elements with probability `rate`; none when `key` is None.

  Args:
    x: at least one axis; of fewer than 2^32 rows.
    rate: in [0, 1).
    key: a jax.random key.

  Returns:
    x with dropped elements 0 and the others divided by 1 - rate.
  """
  if key is None or rate == 0:
    return x
  first, second = jax.random.key_data(key).reshape(-1)[:2]
  *rows, columns = x.shape
  row = jnp.zeros(rows, jnp.uint32)
  for axis, size in enumerate(rows):
    place = jax.lax.broadcasted_iota(jnp.uint32, rows, axis)
    row = row * jnp.uint32(size) + place
  column = _mix(jnp.arange(columns, dtype=jnp.uint32) ^ second)
  column = column.reshape((1,) * len(rows) + (columns,))
  bits = _mix(_mix(row ^ first)[..., None] ^ column)
  keep = bits >= jnp.uint32(round(rate * 2**32))
  return jnp.where(keep, x / (1 - rate), 0)


def _mix(x: jax.Array) -> jax.Array:
  """Scrambles 32 bits, one to one: every bit of x reaches every bit."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
