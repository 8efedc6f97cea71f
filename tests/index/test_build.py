"""What a built index version holds, and when it is not published."""

import ml_dtypes
import numpy as np
import pytest
import small_runs

from realm_jax import config as config_lib
from realm_jax.corpus import change
from realm_jax.corpus.store import Corpus
from realm_jax.index import build, embed, recall
from realm_jax.workdir import rows, versions


@pytest.fixture
def version(tmp_path, corpus, mesh, embedder):
  """version(config, **more): builds one in tmp_path/index."""
  (tmp_path / 'index').mkdir()

  def make(config, corpus=corpus, **more):
    return build.build_version(
      tmp_path / 'index', embedder(config), corpus, config, mesh,
      7, 'digest', **more,
    )  # fmt: skip

  return make


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('batch_size', [16, 7, 500])
def test_rows_are_the_embedded_blocks(
  tmp_path, version, corpus, config, embedder, dtype, batch_size
):
  config = config_lib.replace(
    config,
    index={'rows_dtype': dtype},
    refresh={'batch_size': batch_size},
  )
  manifest = version(config)
  assert manifest == versions.read_manifest(tmp_path / 'index', 1)
  assert (manifest.rows, manifest.dim) == (corpus.num_blocks, 8)
  assert (manifest.checkpoint_step, manifest.embedder_digest) == (7, 'digest')
  assert manifest.corpus_fingerprint == corpus.fingerprint
  assert manifest.tokenizer_digest == corpus.tokenizer_digest
  found_NE = rows.read_rows(tmp_path / 'index', 1, 0, corpus.num_blocks)
  token_NL = corpus.tokens(slice(0, corpus.num_blocks)).astype(np.int32)
  want_NE = np.asarray(
    embed.embed_tokens(
      embedder(config), token_NL, config, corpus.tokenizer.sep_id
    )
  )
  tolerance = 1e-5 if dtype == 'float32' else 0.02
  found_NE = found_NE.astype(np.float32)
  np.testing.assert_allclose(found_NE, want_NE, atol=tolerance)
  # Texts differ, or the comparison says nothing.
  assert np.abs(want_NE - want_NE[0]).max() > 0.1
  recall = manifest.recall['recall@8']
  assert recall == 1 if dtype == 'float32' else 0.8 < recall <= 1


def test_a_batch_is_no_longer_than_its_texts(corpus, config, mesh):
  config = config_lib.replace(config, refresh={'batch_size': 2})
  token_NL = corpus.tokens(slice(0, corpus.num_blocks))
  length_N = (token_NL != 0).sum(1)
  seen = []
  for batch in embed.read_batches(corpus, config, mesh):
    row_b = batch.start + batch.place_b
    seen += row_b.tolist()
    length = batch.token_BL.shape[1]
    assert length == min(-(-length_N[row_b].max() // 32) * 32, 40)
    np.testing.assert_array_equal(
      batch.token_BL[: len(row_b)], token_NL[row_b, :length]
    )
    assert not batch.token_BL[len(row_b) :].any()
  assert sorted(seen) == list(range(corpus.num_blocks))


def test_probes_are_sentences(corpus, config):
  table = corpus.sentences
  for row in range(corpus.num_blocks):
    own = slice(*table.block_offsets[row : row + 2])
    np.testing.assert_array_equal(
      corpus.sentence_bounds(row),
      np.stack([table.start[own], table.end[own]], 1),
    )
  for row, query_L in enumerate(recall.probe_queries(corpus, config)):
    said = corpus.tokenizer.decode(query_L[query_L > 0].tolist())
    assert said.startswith('the house of')  # the second of three
    assert said.split()[-1] != '' and row < corpus.num_blocks


def test_a_corpus_without_a_block_is_not_indexed(
  tmp_path, version, config, monkeypatch
):
  store = small_runs.make_corpus(tmp_path, count=2)
  change.remove(store, ['d0', 'd1'])
  empty = Corpus.open(store)
  with pytest.raises(ValueError, match='all of its documents were removed'):
    version(config, corpus=empty)
  assert list((tmp_path / 'index').iterdir()) == []


def test_recall_is_that_of_the_rows_as_stored(corpus, config, embedder):
  params = embedder(config)
  token_NL = corpus.tokens(slice(0, corpus.num_blocks)).astype(np.int32)
  exact_NE = np.asarray(
    embed.embed_tokens(params, token_NL, config, corpus.tokenizer.sep_id)
  )
  noise_NE = np.random.default_rng(0).normal(size=exact_NE.shape)
  recalls = []
  for scale in (0, 0.5, 100):
    query_BL = recall.probe_queries(corpus, config)
    query_BE = embed.embed_tokens(
      params, query_BL, config, corpus.tokenizer.sep_id
    )
    probe = recall.RecallProbe(corpus, np.asarray(query_BE), 4096)
    stored_NE = (exact_NE + scale * noise_NE).astype(ml_dtypes.bfloat16)
    for start in range(0, corpus.num_blocks, 16):
      part = slice(start, start + 16)
      probe.add(start, exact_NE[part], stored_NE[part])
    recalls.append(probe.recall()['recall@8'])
  assert recalls[0] > 0.9 > recalls[1] > recalls[2]


def test_an_interrupted_build_leaves_nothing(tmp_path, version, config):
  asked = []

  def stopped():
    asked.append(1)
    return len(asked) > 1

  with pytest.raises(embed.Interrupted):
    version(config, stopped=stopped)
  assert list((tmp_path / 'index').iterdir()) == []
  assert version(config).version == 1  # its number is free again


def test_a_search_that_is_wrong_is_not_published(
  tmp_path, version, config, monkeypatch
):
  right = recall._top_k

  def wrong(rows, *more):
    return right(rows[::-1], *more)

  monkeypatch.setattr(recall, '_top_k', wrong)
  with pytest.raises(build.Refused):
    version(config_lib.replace(config, index={'min_recall': 0.8}))


def test_a_version_of_low_recall_is_not_published(
  tmp_path, version, config, monkeypatch
):
  monkeypatch.setattr(
    recall.RecallProbe, 'recall', lambda _: {'recall@8': 0.9375}
  )
  config = config_lib.replace(config, index={'min_recall': 0.95})
  with pytest.raises(
    ValueError, match=r'recall@8 0\.9375, below .* 0\.95; not'
  ):
    version(config)
  assert list((tmp_path / 'index').iterdir()) == []
  config = config_lib.replace(config, index={'min_recall': 0.9375})
  assert version(config).recall == {'recall@8': 0.9375}
