"""A digest of parameters that depends on their values alone.

Every word of every leaf is mixed with its position and the mixes are summed
as integers modulo 2^32. Sums of integers do not depend on their order, so the
digest is the same for every sharding and device, and nothing is gathered.
"""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.config import Config

_KEYS = (0x9E3779B9, 0x85EBCA6B)


@jax.jit
def leaf_sums(params: Any) -> Any:
  """Two 32-bit sums of every leaf.

  Args:
    params: a pytree of arrays, with any shardings.

  Returns:
    The same tree with a pair of uint32 scalars for every leaf.
  """
  return jax.tree.map(_sums, params)


def tree_digest(params: Any) -> str:
  """The digest of a tree: of its paths, shapes, dtypes and bits.

  Two trees of equal structure that differ in one word have different
  digests; otherwise two trees agree by chance only (2^-64 a leaf).

  Args:
    params: a pytree of arrays (jax or numpy), with any shardings.

  Returns:
    64 hexadecimal digits.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  sums = jax.device_get(leaf_sums([leaf for _, leaf in leaves]))
  entries = sorted(
    [
      jax.tree_util.keystr(path, simple=True, separator='/'),
      list(np.shape(leaf)),
      str(leaf.dtype),
      *map(int, pair),
    ]
    for (path, leaf), pair in zip(leaves, sums, strict=True)
  )
  return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def embedder_digest(params: Any, config: Config) -> str:
  """The digest of a document embedder: what its embeddings depend on.

  Args:
    params: its parameters, with any shardings.
    config: `pooling`, and what of `model` the shapes of `params` don't show.

  Returns:
    64 hexadecimal digits.
  """
  model = config.model
  known = [
    tree_digest(params),
    *(config.pooling, model.num_heads, model.activation),
    *(model.layer_norm_eps, model.projection_eps),
  ]
  return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _sums(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
  words = _words(leaf)
  position = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    step = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    position = position * jnp.uint32(size & 0xFFFFFFFF) + step
  first, second = (
    # One to one in the word for a given position: one changed word always
    # changes the sum.
    jnp.sum(_mix(words ^ _mix(position + jnp.uint32(key))), dtype=jnp.uint32)
    for key in _KEYS
  )
  return first, second


def _words(leaf: jax.Array) -> jax.Array:
  """The bits of a leaf, one uint32 for an element of up to 32 bits."""
  if leaf.dtype == jnp.bool_:
    return leaf.astype(jnp.uint32)
  size = leaf.dtype.itemsize
  word = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
  return jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  """A one-to-one scrambling of 32 bits (the finaliser of MurmurHash3)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
