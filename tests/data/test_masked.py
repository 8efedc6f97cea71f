import shutil

import numpy as np
import pytest
from data_checks import TWICE, content, sentences_of, unmask

from realm_jax import config as config_lib
from realm_jax.corpus import change
from realm_jax.corpus.prepare import prepare
from realm_jax.corpus.store import Corpus
from realm_jax.data.masked import MaskedSentenceSource

LENGTH = 40


def make(text_corpus, corpus, *slices, **changes):
  values = {'batch_size': 60, 'query_length': LENGTH, **changes}
  config = config_lib.replace(config_lib.Config(), **values)
  return MaskedSentenceSource(text_corpus, corpus, config, *slices)


def all_sentences(corpus):
  """Token ids by global sentence number, and their blocks."""
  parts, blocks = [], []
  for row in range(corpus.num_blocks):
    found = sentences_of(corpus, row)[1]
    parts += found
    blocks += [row] * len(found)
  return parts, blocks


def restored(batch):
  return unmask(
    batch['query_BL'],
    batch['position_BM'],
    batch['target_BM'],
    batch['weight_BM'],
  )


@pytest.mark.parametrize('masking', ['salient', 'uniform', 'random_span'])
@pytest.mark.parametrize('same', [True, False])
def test_queries_and_exclusions_against_brute_force(
  corpus, text_corpus, masking, same
):
  texts = corpus if same else text_corpus
  parts, blocks = all_sentences(texts)
  z_parts, z_blocks = all_sentences(corpus)
  source = make(texts, corpus, masking=masking, index={'max_excluded': 40})
  several = 0
  for step in range(3):
    batch = source[step]
    for row, query_L in enumerate(restored(batch)):
      sentence = int(batch['sentence_B'][row])
      assert content(query_L)[1:-1] == parts[sentence]
      assert batch['weight_BM'][row].any()
      holders = {
        block
        for part, block in zip(z_parts, z_blocks, strict=True)
        if part == parts[sentence]
      }
      exclude_X = batch['exclude_BX'][row]
      listed = exclude_X[exclude_X >= 0].tolist()
      assert len(listed) == len(set(listed))
      assert set(listed) == holders
      assert (exclude_X[len(listed) :] == -1).all()
      if same:
        assert listed[0] == blocks[sentence]
      several += len(listed) > 1
  assert several


def test_exclusions_are_capped_with_the_own_block_first(corpus):
  source = make(corpus, corpus, index={'max_excluded': 2})
  assert source.counts['sentences_capped'] >= 1
  assert (
    make(corpus, corpus, index={'max_excluded': 40}).counts['sentences_capped']
    == 0
  )
  _, blocks = all_sentences(corpus)
  batch = source[0]
  assert batch['exclude_BX'].shape == (60, 2)
  own_B = np.array([blocks[s] for s in batch['sentence_B']])
  np.testing.assert_array_equal(batch['exclude_BX'][:, 0], own_B)
  assert (batch['exclude_BX'][:, 1] != own_B).all()


def test_without_the_ban_nothing_is_excluded(corpus):
  banned = make(corpus, corpus)[0]
  free = make(corpus, corpus, ban_trivial=False)[0]
  assert (free.pop('exclude_BX') == -1).all()
  assert (banned.pop('exclude_BX')[:, 0] >= 0).all()
  for name, array in free.items():
    np.testing.assert_array_equal(array, banned[name])


def test_x_that_is_not_z_still_excludes_the_same_sentence(corpus, text_corpus):
  """Near-duplicates: TWICE stands in both stores."""
  ids = corpus.tokenizer.encode(TWICE)[0]
  source = make(text_corpus, corpus, query_length=64)
  found = 0
  for step in range(10):
    batch = source[step]
    for row, query_L in enumerate(restored(batch)):
      if content(query_L)[1:-1] == ids:
        found += 1
        assert (batch['exclude_BX'][row] >= 0).all()  # 17 blocks, capped
  assert found


def test_removed_blocks_are_not_excluded(paths, corpus, tmp_path):
  """They would take the places of living ones that hold the sentence."""
  shutil.copytree(paths / 'z', tmp_path / 'z')
  ids = [corpus.document_id(row) for row in range(0, corpus.num_blocks, 2)]
  change.remove(str(tmp_path / 'z'), sorted(set(ids)))
  alive_N = Corpus.open(str(tmp_path / 'z')).alive(0, corpus.num_blocks)
  parts, blocks = all_sentences(corpus)
  source = make(corpus, Corpus.open(str(tmp_path / 'z')))
  batch = source[0]
  for sentence, exclude_X in zip(
    batch['sentence_B'], batch['exclude_BX'], strict=True
  ):
    holders = {
      block
      for part, block in zip(parts, blocks, strict=True)
      if part == parts[sentence] and alive_N[block]
    }
    assert set(exclude_X[exclude_X >= 0].tolist()) <= holders
    assert len(holders) > len(exclude_X) or len(holders) == sum(exclude_X >= 0)


def test_long_sentences_keep_their_span(corpus):
  parts, _ = all_sentences(corpus)
  source = make(corpus, corpus, query_length=10, max_masks=6)
  assert source.counts['sentences_cropped'] > 0
  cropped = 0
  for step in range(3):
    batch = source[step]
    for row, query_L in enumerate(restored(batch)):
      text = content(query_L)[1:-1]
      part = parts[batch['sentence_B'][row]]
      assert len(text) == min(len(part), 8)
      assert any(part[at : at + len(text)] == text for at in range(len(part)))
      cropped += len(part) > 8
      width = int(batch['weight_BM'][row].sum())
      masks_L = batch['query_BL'][row] == corpus.tokenizer.mask_id
      assert 1 <= width == masks_L.sum() <= 6
  assert cropped


def test_uniform_masks_at_the_rate(corpus):
  batch = make(corpus, corpus, masking='uniform', mask_rate=0.5)[0]
  maskable_B = (batch['query_BL'] != 0).sum(1) - 2
  np.testing.assert_array_equal(
    batch['weight_BM'].sum(1),
    np.clip(np.rint(maskable_B / 2), 1, 10).clip(max=maskable_B),
  )


def test_batches_are_pure_and_slices_make_the_whole(corpus):
  for masking in ('salient', 'uniform'):
    whole = make(corpus, corpus, masking=masking)[4]
    parts = [make(corpus, corpus, i, 4, masking=masking)[4] for i in range(4)]
    for name, values in whole.items():
      np.testing.assert_array_equal(
        np.concatenate([part[name] for part in parts]), values
      )


def test_every_usable_block_gives_one_sentence_an_epoch(corpus):
  _, blocks = all_sentences(corpus)
  source = make(corpus, corpus, batch_size=1)
  usable = source.counts['blocks']
  assert source.steps_per_epoch == usable
  visited = [blocks[source[step]['sentence_B'][0]] for step in range(usable)]
  assert len(set(visited)) == usable
  assert source.counts['without_sentence'] == corpus.num_blocks - usable


def test_another_tokenizer_is_refused(paths, corpus, tmp_path):
  prepare(
    [str(paths / 'x.jsonl')],
    format='jsonl',
    train_vocab=150,
    output=str(tmp_path / 'other'),
    block_length=64,
  )
  with pytest.raises(ValueError, match='tokenizer'):
    make(Corpus.open(str(tmp_path / 'other')), corpus)
