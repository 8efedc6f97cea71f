import types

import numpy as np
import pytest
from data_checks import unmask

from realm_jax.data import masking

MASK = 4


def test_span_is_masked_and_restorable():
  token_BL = np.array([[2, 9, 8, 7, 3], [2, 6, 5, 3, 0]], np.uint16)
  masked = masking.mask_span(
    token_BL, np.array([1, 2]), np.array([4, 3]), 3, MASK
  )
  np.testing.assert_array_equal(masked[0], [[2, 4, 4, 4, 3], [2, 6, 4, 3, 0]])
  np.testing.assert_array_equal(masked[1], [[1, 2, 3], [2, 0, 0]])
  np.testing.assert_array_equal(masked[2], [[9, 8, 7], [5, 0, 0]])
  np.testing.assert_array_equal(masked[3], [[1, 1, 1], [1, 0, 0]])
  np.testing.assert_array_equal(unmask(*masked), token_BL)
  assert [a.dtype for a in masked] == [np.int32] * 3 + [np.float32]


def test_uniform_masking_follows_bert():
  rng = np.random.default_rng(0)
  rows, length, masks = 4000, 40, 8
  token_BL = rng.integers(5, 1000, (rows, length))
  allowed_BL = np.ones((rows, length), bool)
  allowed_BL[:, [0, 7]] = False
  ordinary = np.arange(5, 1000)
  masked = masking.mask_uniform(
    token_BL,
    allowed_BL,
    0.15,
    masks,
    MASK,
    ordinary,
    rng.random((rows, masking.uniform_draws(length, masks))),
  )
  masked_BL, position_BM, target_BM, weight_BM = masked
  assert (weight_BM.sum(1) == 6).all()  # 0.15 of 38, rounded
  real_BM = weight_BM > 0
  assert (np.diff(position_BM[:, :6], axis=1) > 0).all()
  assert not np.isin(position_BM[real_BM], (0, 7)).any()
  np.testing.assert_array_equal(unmask(*masked), token_BL)
  found_BM = np.take_along_axis(masked_BL, position_BM, 1)[real_BM]
  assert abs((found_BM == MASK).mean() - 0.8) < 0.01
  assert abs((found_BM == target_BM[real_BM]).mean() - 0.1) < 0.01
  assert np.isin(masked_BL, [*ordinary, MASK]).all()
  chosen_L = np.bincount(position_BM[real_BM], minlength=length)
  expected = rows * 6 / 38
  assert (abs(chosen_L[allowed_BL[0]] - expected) < 6 * expected**0.5).all()


@pytest.mark.parametrize(
  ('allowed', 'masks', 'expected'), [(2, 5, 1), (40, 3, 3), (0, 3, 0)]
)
def test_uniform_masks_one_at_least_and_never_too_many(
  allowed, masks, expected
):
  allowed_BL = np.arange(40)[None] < allowed
  _, _, _, weight_BM = masking.mask_uniform(
    np.full((1, 40), 9),
    allowed_BL,
    0.15,
    masks,
    MASK,
    np.array([5]),
    np.random.default_rng(0).random((1, masking.uniform_draws(40, masks))),
  )
  assert weight_BM.sum() == expected


def test_random_spans_have_spanbert_lengths():
  rng = np.random.default_rng(0)
  length_B = np.full(20000, 30)
  start_B, end_B = masking.draw_span(length_B, 10, rng.random((20000, 2)))
  width_B = end_B - start_B
  assert start_B.min() == 0 and end_B.max() == 30
  assert width_B.min() == 1 and width_B.max() == 10
  assert abs(width_B.mean() - 3.8) < 0.1  # SpanBERT's mean
  ratio = (width_B == 2).sum() / (width_B == 1).sum()
  assert abs(ratio - 0.8) < 0.05


def test_random_spans_stay_inside():
  rng = np.random.default_rng(0)
  length_B = rng.integers(1, 6, 1000)
  start_B, end_B = masking.draw_span(length_B, 3, rng.random((1000, 2)))
  assert (start_B >= 0).all() and (end_B <= length_B).all()
  assert (end_B - start_B >= 1).all() and (end_B - start_B <= 3).all()


def test_ordinary_ids_leave_out_special_ones():
  tokenizer = types.SimpleNamespace(
    vocab_size=9, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4
  )
  assert masking.ordinary_ids(tokenizer).tolist() == [5, 6, 7, 8]
