"""The gradient of a contrastive loss over a batch too large to hold.

Gao et al. 2021, "Scaling deep contrastive learning batch size under memory
limited setup": the loss needs the embeddings of the whole batch, but only the
embeddings; the activations behind them are needed a micro-batch at a time. A
batch of 4096 (4 layers of 256, texts of 64 and 288 wordpieces, float32) takes
316 GB of temporary memory by the CPU compiler's analysis, in 64 parts 4.7 GB.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train.update import Batch, Gradient, split_parts

# (parameters, batch, key of dropout) -> arrays of one row an example
EmbedFn = Callable[[dict[str, Any], Batch, jax.Array], Any]
# what EmbedFn gives, of the whole batch -> loss, metrics
EmbeddingLossFn = Callable[[Any], tuple[jax.Array, dict[str, jax.Array]]]


def cached_gradient(
  embed_fn: EmbedFn,
  loss_fn: EmbeddingLossFn,
  params: dict[str, Any],
  batch: Batch,
  key: jax.Array,
  count: int,
) -> Gradient:
  """The exact gradient of `loss_fn(embed_fn(params, batch, key))`.

  With parts: all are embedded, nothing else of them is kept; the loss of all
  embeddings gives a gradient for each of them; then each part is embedded
  again, with the same dropout, and takes its embeddings' gradients back to
  the parameters. A third of the operations more than at once (with `remat`,
  a quarter), and the activations of one part in memory.

  Args:
    embed_fn: a row may depend on no other row of the batch.
    loss_fn: of the embeddings of the whole batch, in its order.
    params: of `embed_fn`.
    batch: arrays of one first axis.
    key: of dropout; each part has its own of `jax.random.split(key, count)`.
    count: parts, one after the other; 1: no cache.

  Returns:
    Loss, metrics, and the gradient of the loss with respect to `params`.
  """
  if count == 1:

    def at_once(params: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
      return loss_fn(embed_fn(params, batch, key))

    (loss, metrics), grads = jax.value_and_grad(at_once, has_aux=True)(params)
    return Gradient(loss, metrics, grads)

  parts = (split_parts(batch, count), jax.random.split(key, count))

  def embed(_: None, part: Any) -> tuple[None, Any]:
    return None, embed_fn(params, *part)

  _, embedded = jax.lax.scan(embed, None, parts)
  whole = jax.tree.map(
    lambda x: mesh_lib.split_batch(x.reshape(-1, *x.shape[2:])), embedded
  )
  (loss, metrics), cached = jax.value_and_grad(loss_fn, has_aux=True)(whole)

  def add(total: Any, part: Any) -> tuple[Any, None]:
    inputs, cached = part
    _, pull = jax.vjp(lambda params: embed_fn(params, *inputs), params)
    return jax.tree.map(jnp.add, total, *pull(cached)), None

  none = jax.tree.map(jnp.zeros_like, params)
  grads, _ = jax.lax.scan(add, none, (parts, split_parts(cached, count)))
  return Gradient(loss, metrics, grads)
