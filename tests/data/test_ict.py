from itertools import chain

import numpy as np
import pytest
from data_checks import content, sentences_of

from realm_jax.corpus.prepare import prepare
from realm_jax.corpus.store import Corpus
from realm_jax.data.ict import IctSource

LENGTH = 32


def source(corpus, removal=0.9, batch_size=64, **slices):
  return IctSource(corpus, batch_size, LENGTH, removal, seed=1, **slices)


def blocks_by_content(corpus):
  tokens = corpus.tokens(slice(0, corpus.num_blocks))
  return {tuple(content(row_L)): row for row, row_L in enumerate(tokens)}


def test_pairs_are_a_sentence_and_its_block(corpus):
  known = blocks_by_content(corpus)
  without = {}
  for row in range(corpus.num_blocks):
    head, parts = sentences_of(corpus, row)
    for place, part in enumerate(parts):
      rest = chain(*parts[:place], *parts[place + 1 :])
      key = tuple([*head, *rest, corpus.tokenizer.sep_id])
      without.setdefault(key, []).append(part)
  removed = unremoved = 0
  for step in range(4):
    batch = source(corpus)[step]
    for query_L, block_L in zip(
      batch['query_BL'], batch['block_BL'], strict=True
    ):
      query = content(query_L)
      assert query[0] == corpus.tokenizer.cls_id
      assert query[-1] == corpus.tokenizer.sep_id
      block = tuple(content(block_L))
      if block in known:
        _, parts = sentences_of(corpus, known[block])
        assert any(query[1:-1] == part[: LENGTH - 2] for part in parts)
        unremoved += len(parts) > 1
      else:
        assert any(query[1:-1] == part[: LENGTH - 2] for part in without[block])
        removed += 1
  assert 0.84 < removed / (removed + unremoved) < 0.96


def test_an_epoch_has_its_share_of_blocks_of_one_sentence(corpus):
  size = np.diff(corpus.sentences.block_offsets)
  single = int((size == 1).sum())
  assert single > 10
  known = blocks_by_content(corpus)
  ict = source(corpus, removal=0.75, batch_size=1)
  share = round(single / 4)
  assert ict.counts['blocks'] == int((size > 1).sum()) + share
  assert ict.counts['one_sentence_skipped'] == single - share
  used = []
  for step in range(ict.counts['blocks'] * 2):
    block = tuple(content(ict[step]['block_BL'][0]))
    if block in known and size[known[block]] == 1:
      used.append(known[block])
  assert len(used) == 2 * share
  assert len(set(used)) == 2 * share  # other ones in the second epoch


def test_without_removal_blocks_are_whole(corpus):
  known = blocks_by_content(corpus)
  ict = source(corpus, removal=0.0)
  assert ict.counts['blocks'] == corpus.num_blocks
  for block_L in ict[0]['block_BL']:
    assert tuple(content(block_L)) in known


def test_batches_are_pure_and_slices_make_the_whole(corpus):
  whole = source(corpus)[5]
  parts = [
    source(corpus, process_index=index, process_count=4)[5]
    for index in range(4)
  ]
  for name, values in whole.items():
    assert values.dtype == np.int32
    np.testing.assert_array_equal(
      np.concatenate([part[name] for part in parts]), values
    )
  assert (whole['query_BL'] != source(corpus)[6]['query_BL']).any()


def test_long_sentences_are_cut_and_counted(corpus):
  ict = IctSource(corpus, 64, 8, 1.0, seed=0)
  width = corpus.sentences.end - corpus.sentences.start
  assert ict.counts['sentences_truncated'] == int((width > 6).sum()) > 0
  query_BL = ict[0]['query_BL']
  cut_B = (query_BL != 0).sum(1) == 8
  assert (query_BL[cut_B, -1] == corpus.tokenizer.sep_id).all()
  assert cut_B.any()


def test_a_corpus_without_pairs_is_refused(paths, tmp_path):
  (tmp_path / 'one.jsonl').write_text('{"title": "A", "text": "Bado saw."}\n')
  prepare(
    [str(tmp_path / 'one.jsonl')],
    format='jsonl',
    vocab=str(paths / 'z' / 'vocab.txt'),
    output=str(tmp_path / 'one'),
    block_length=64,
  )
  with pytest.raises(ValueError, match='one_sentence_skipped'):
    source(Corpus.open(str(tmp_path / 'one')), removal=1.0)
