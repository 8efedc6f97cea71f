"""Query and retrieved body as one text, built on the device."""

import jax
import jax.numpy as jnp


def join(
  query_BL: jax.Array, document_BKL: jax.Array, length: int, sep_id: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Builds `[CLS] x [SEP] body(z) [SEP]` (paper section 3.2).

  The title is left out. A body that does not fit is cut, and the last
  position is [SEP]. Padding alone and the null document `[CLS] [SEP] [SEP]`
  have an empty body.

  Args:
    query_BL: `[CLS] x [SEP]`, padded with 0.
    document_BKL: `[CLS] title [SEP] body [SEP]`, padded with 0; its length
      need not be the query's.
    length: J, the length of the joint text.
    sep_id: id of [SEP].

  Returns:
    token_BKJ: int32 ids, padded with 0.
    segment_BKJ: int32; 1 in the body and the final [SEP], 0 elsewhere.
    body_start_BK: position of the body's first token.
    body_end_BK: the position after its last: that of the final [SEP].

  Raises:
    ValueError: a query can be as long as the joint text.
  """
  if query_BL.shape[1] >= length:
    raise ValueError(
      f'joint length: {length}, must be more than the query length '
      f'{query_BL.shape[1]}'
    )
  query_end_B11 = jnp.sum(query_BL != 0, axis=1)[:, None, None]
  sep_BKL = document_BKL == sep_id
  # argmax finds the first; without one there is no body either.
  first_BK1 = jnp.argmax(sep_BKL, axis=-1)[:, :, None] + 1
  last_BK1 = jnp.sum(document_BKL != 0, axis=-1)[:, :, None] - 1
  body_BK1 = jnp.clip(last_BK1 - first_BK1, 0, length - 1 - query_end_B11)
  end_BK1 = query_end_B11 + body_BK1

  place_11J = jnp.arange(length)[None, None, :]
  query_BJ = jnp.pad(query_BL, ((0, 0), (0, length - query_BL.shape[1])))
  from_BKJ = jnp.clip(
    first_BK1 + place_11J - query_end_B11, 0, document_BKL.shape[-1] - 1
  )
  body_BKJ = jnp.take_along_axis(document_BKL, from_BKJ, axis=-1)
  in_query_B1J = place_11J < query_end_B11
  token_BKJ = jnp.where(
    in_query_B1J,
    query_BJ[:, None, :].astype(jnp.int32),
    jnp.where(place_11J < end_BK1, body_BKJ.astype(jnp.int32), sep_id),
  )
  token_BKJ = jnp.where(place_11J <= end_BK1, token_BKJ, 0)
  segment_BKJ = (~in_query_B1J & (place_11J <= end_BK1)).astype(jnp.int32)
  end_BK = end_BK1[:, :, 0]
  start_BK = jnp.broadcast_to(query_end_B11[:, :, 0], end_BK.shape)
  return token_BKJ, segment_BKJ, start_BK, end_BK
