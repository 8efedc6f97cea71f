"""Sampled retrievals: what the step saw, in words."""

import numpy as np
import pytest
import small_runs

from realm_jax.corpus.store import Corpus
from realm_jax.train.run import train
from realm_jax.train.samples import SAMPLES, SampleLog
from realm_jax.workdir import files


def test_samples_say_what_was_masked_and_found(tmp_path):
  corpus = small_runs.make_corpus(tmp_path)
  config = small_runs.make_config(corpus, num_steps=5, sample_every=2)
  with small_runs.compile_once(tmp_path / 'cache'):
    assert train('pretrain', config, str(tmp_path / 'w')) == 0
  lines = files.read_lines(tmp_path / 'w' / 'samples.jsonl')
  assert [line['step'] for line in lines] == [2] * SAMPLES + [4] * SAMPLES
  store = Corpus.open(corpus)
  texts = {
    store.tokenizer.decode(store.tokenizer.encode(store.text(row))[0])
    for row in range(store.num_blocks)
  }
  for line in lines:
    null, *found = line['candidates']
    assert null['block'] is None and null['text'] == ''
    assert len(found) == config.num_candidates - 1
    for candidate in found:
      assert candidate['text'] == store.text(candidate['block'])
      assert candidate['title'] == store.title(candidate['block'])
      assert 0 < candidate['answer_probability'] < 1
    shares = [candidate['probability'] for candidate in line['candidates']]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    # The sentence is one of the corpus, but for what was masked.
    assert line['sentence'].count('[MASK]') == 1
    whole = line['sentence'].replace('[MASK]', line['answer'])
    assert any(
      whole.replace(' ', '') in text.replace(' ', '') for text in texts
    )


def test_a_process_with_few_examples_writes_those(tmp_path):
  corpus = Corpus.open(small_runs.make_corpus(tmp_path))
  batch = {
    'query_BL': np.ones((2, 8), np.int32),
    'target_BM': np.ones((2, 3), np.int32),
    'weight_BM': np.ones((2, 3), np.float32),
  }
  sample = {
    'row_BK': np.zeros((SAMPLES, 1), np.int32),
    'log_prior_BK': np.zeros((SAMPLES, 2), np.float32),
    'log_prob_BK': np.zeros((SAMPLES, 2), np.float32),
  }
  SampleLog(tmp_path, corpus, None).write(7, batch, sample)
  lines = files.read_lines(tmp_path / 'samples.jsonl')
  assert [line['step'] for line in lines] == [7, 7]
