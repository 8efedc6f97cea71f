"""Masking of wordpieces: pure functions of tokens and random numbers.

Each returns `(masked_BL, position_BM, target_BM, weight_BM)`: tokens with the
masks in, the masked places in ascending order, the tokens that stood there and
1.0 for each real place; places beyond a row's masks have position, target and
weight 0. int32, weight float32.
"""

import numpy as np

# SpanBERT (Joshi et al. 2020, section 3.1): geometric lengths, cut at 10.
_SPAN_P, _SPAN_MAX = 0.2, 10

Masked = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def mask_span(
  token_BL: np.ndarray,
  start_B: np.ndarray,
  end_B: np.ndarray,
  max_masks: int,
  mask_id: int,
) -> Masked:
  """Puts [MASK] on every token of one span (salient spans, section 3.4).

  Args:
    token_BL: int.
    start_B: first place of the span.
    end_B: one past its last place; at most max_masks from the start.
    max_masks: M.
    mask_id: of [MASK].
  """
  position_BM = start_B[:, None] + np.arange(max_masks)
  real_BM = position_BM < end_B[:, None]
  position_BM, target_BM = _targets(token_BL, position_BM, real_BM)
  masked_BL = token_BL.astype(np.int32)
  row_B, column_M = np.nonzero(real_BM)
  masked_BL[row_B, position_BM[row_B, column_M]] = mask_id
  return masked_BL, position_BM, target_BM, real_BM.astype(np.float32)


def draw_span(
  length_B: np.ndarray, max_width: int, random_B2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """A random span inside [0, length) as SpanBERT draws it.

  Args:
    length_B: at least 1.
    max_width: spans are no wider (nor wider than 10, nor than length).
    random_B2: [B, 2] in [0, 1): for the width and the place.

  Returns:
    start_B and end_B (exclusive).
  """
  width = np.arange(1, min(max_width, _SPAN_MAX) + 1)
  reach = np.cumsum((1 - _SPAN_P) ** (width - 1))
  width_B = 1 + np.searchsorted(
    reach / reach[-1], random_B2[:, 0], side='right'
  )
  width_B = np.minimum(width_B, length_B)
  start_B = (random_B2[:, 1] * (length_B - width_B + 1)).astype(np.int64)
  return start_B, start_B + width_B


def mask_uniform(
  token_BL: np.ndarray,
  allowed_BL: np.ndarray,
  rate: float,
  max_masks: int,
  mask_id: int,
  ordinary_ids: np.ndarray,
  random_BR: np.ndarray,
) -> Masked:
  """BERT's masking: of the chosen, 80% [MASK], 10% random, 10% unchanged.

  Args:
    token_BL: int.
    allowed_BL: bool: places that may be chosen.
    rate: share of the allowed places; at least one is chosen (if any is
      allowed), at most max_masks.
    max_masks: M.
    mask_id: of [MASK].
    ordinary_ids: ids that a random replacement is drawn from; never a
      special one ([PAD] and [SEP] would change lengths and segments).
    random_BR: [B, uniform_draws(L, M)] in [0, 1).
  """
  length = token_BL.shape[1]
  places = min(max_masks, length)
  allowed_B = allowed_BL.sum(1)
  count_B = np.clip(np.rint(rate * allowed_B).astype(np.int64), 1, max_masks)
  count_B = np.minimum(count_B, allowed_B)
  key_BL = np.where(allowed_BL, random_BR[:, :length], 2.0)
  lowest_BM = np.argsort(key_BL, 1)[:, :places]
  # Chosen places first and ascending; the rest behind them.
  position_BM = np.full((len(token_BL), max_masks), length)
  position_BM[:, :places] = np.where(
    np.arange(places) < count_B[:, None], lowest_BM, length
  )
  position_BM.sort(1)
  real_BM = position_BM < length
  position_BM, target_BM = _targets(token_BL, position_BM, real_BM)
  kind_BM = random_BR[:, length : length + max_masks]
  draw_BM = random_BR[:, length + max_masks : length + 2 * max_masks]
  random_BM = ordinary_ids[(draw_BM * len(ordinary_ids)).astype(np.int64)]
  new_BM = np.where(
    kind_BM < 0.8, mask_id, np.where(kind_BM < 0.9, random_BM, target_BM)
  )
  masked_BL = token_BL.astype(np.int32)
  row_B, column_M = np.nonzero(real_BM)
  masked_BL[row_B, position_BM[row_B, column_M]] = new_BM[row_B, column_M]
  return masked_BL, position_BM, target_BM, real_BM.astype(np.float32)


def uniform_draws(length: int, max_masks: int) -> int:
  """Random numbers that mask_uniform needs for a row."""
  return length + 2 * max_masks


def ordinary_ids(tokenizer) -> np.ndarray:
  """Every id of the vocabulary but the special ones."""
  special = ('pad_id', 'unk_id', 'cls_id', 'sep_id', 'mask_id')
  return np.setdiff1d(
    np.arange(tokenizer.vocab_size),
    [getattr(tokenizer, name) for name in special],
  )


def _targets(
  token_BL: np.ndarray, position_BM: np.ndarray, real_BM: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Positions and the tokens there, 0 where not real."""
  position_BM = np.where(real_BM, position_BM, 0).astype(np.int32)
  target_BM = np.take_along_axis(token_BL, position_BM.astype(np.int64), 1)
  return position_BM, np.where(real_BM, target_BM, 0).astype(np.int32)
