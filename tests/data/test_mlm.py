from itertools import chain

import numpy as np
import pytest
from data_checks import content, sentences_of, unmask

from realm_jax import config as config_lib
from realm_jax.data.mlm import MlmSource


def make(corpus, masking='salient', **changes):
  config = config_lib.replace(
    config_lib.Config(), batch_size=48, masking=masking, **changes
  )
  return MlmSource(corpus, config)


@pytest.mark.parametrize('masking', ['salient', 'uniform', 'random_span'])
def test_texts_are_a_sentence_and_the_rest_of_its_block(corpus, masking):
  tokenizer = corpus.tokenizer
  possible = {}
  for row in range(corpus.num_blocks):
    _, parts = sentences_of(corpus, row)
    for place, part in enumerate(parts):
      rest = chain(*parts[:place], *parts[place + 1 :])
      text = [
        tokenizer.cls_id, *part, tokenizer.sep_id, *rest, tokenizer.sep_id
      ]  # fmt: skip
      possible[tuple(text)] = len(part)
  source = make(corpus, masking)
  for step in range(3):
    batch = source[step]
    restored_BL = unmask(
      batch['token_BL'],
      batch['position_BM'],
      batch['target_BM'],
      batch['weight_BM'],
    )
    for row, restored_L in enumerate(restored_BL):
      text = content(restored_L)
      width = possible[tuple(text)]
      expected = [0] * (width + 2) + [1] * (len(text) - width - 2)
      segment = batch['segment_BL'][row]
      assert segment[: len(text)].tolist() == expected
      assert not segment[len(text) :].any()
      places = batch['position_BM'][row][batch['weight_BM'][row] > 0]
      if masking == 'uniform':
        maskable = len(text) - 3
        assert len(places) == min(max(1, round(0.15 * maskable)), 10)
      else:
        assert places.min() >= 1 and places.max() <= width  # within A
        assert (np.diff(places) == 1).all()
        assert (batch['token_BL'][row][places] == tokenizer.mask_id).all()


@pytest.mark.parametrize('masking', ['salient', 'uniform'])
def test_a_copied_sentence_stays_in_its_block(corpus, masking):
  tokenizer, length = corpus.tokenizer, corpus.block_length
  rest, whole = set(), set()
  for row in range(corpus.num_blocks):
    _, parts = sentences_of(corpus, row)
    for place, part in enumerate(parts):
      others = [*parts[:place], *parts[place + 1 :]]
      for found, body in ((rest, others), (whole, parts)):
        text = [tokenizer.cls_id, *part, tokenizer.sep_id, *chain(*body)]
        found.add((*text[: length - 1], tokenizer.sep_id))
  assert max(map(len, whole)) == length  # some are cut

  def texts(copy_rate):
    batch = make(corpus, masking, copy_rate=copy_rate)[0]
    names = ('token_BL', 'position_BM', 'target_BM', 'weight_BM')
    return [tuple(content(x)) for x in unmask(*map(batch.get, names))]

  assert all(text in whole for text in texts(1.0))
  copied = [text in whole for text in texts(0.5)]
  assert 0.2 < np.mean(copied) < 0.8
  assert all(
    text in rest
    for text, copy in zip(texts(0.5), copied, strict=True)
    if not copy
  )
  assert texts(0.0) == texts(0.0) and not set(texts(0.0)) & whole


def test_salient_masks_are_salient_spans(corpus):
  table = corpus.sentences
  spans = set()
  tokens = corpus.tokens(slice(0, corpus.num_blocks))
  for row in range(corpus.num_blocks):
    head = tokens[row].tolist().index(corpus.tokenizer.sep_id) + 1
    for s in range(*table.block_offsets[row : row + 2]):
      for p in range(*table.span_offsets[s : s + 2]):
        first, last = head + table.span_start[p], head + table.span_end[p]
        spans.add(tuple(tokens[row, first:last].tolist()))
  batch = make(corpus)[0]
  for target_M, weight_M in zip(
    batch['target_BM'], batch['weight_BM'], strict=True
  ):
    assert tuple(target_M[weight_M > 0].tolist()) in spans


def test_batches_are_pure_and_slices_make_the_whole(corpus):
  source = make(corpus, 'uniform')
  parts = [
    MlmSource(corpus, source._walk._config, index, 3)[2] for index in range(3)
  ]
  for name, values in make(corpus, 'uniform')[2].items():
    np.testing.assert_array_equal(
      np.concatenate([part[name] for part in parts]), values
    )
  assert (source[2]['token_BL'] != source[3]['token_BL']).any()


def test_blocks_without_a_narrow_span_are_counted(corpus):
  wide, narrow = make(corpus), make(corpus, max_masks=2)
  assert wide.counts['blocks'] > narrow.counts['blocks'] > 0
  assert narrow.counts['spans_too_wide'] > wide.counts['spans_too_wide']
  counts = narrow.counts
  assert (
    counts['blocks'] + counts['without_sentence'] + counts['removed']
    == corpus.num_blocks
  )
  assert narrow[0]['position_BM'].shape == (48, 2)
