"""The quickstart at its small size, as a user starts it."""

import json
import os
import subprocess
import sys


def test_small_quickstart(tmp_path):
  workdir = tmp_path / 'run'
  result = subprocess.run(
    [
      *(sys.executable, '-m', 'realm_jax', 'quickstart'),
      *('--workdir', str(workdir), '--size', 'small'),
    ],
    capture_output=True,
    text=True,
    timeout=1500,
    env={**os.environ, 'XLA_FLAGS': ''},
  )
  assert result.returncode == 0, result.stderr[-3000:]
  assert 'What the model learned' in result.stderr
  summary = json.loads((workdir / 'summary.json').read_text())
  assert set(summary) == {
    'closed_book_exact_match',
    'exact_match',
    'zero_shot_recall@1_before_pretraining',
    'zero_shot_recall@1_after_pretraining',
    'new_document_exact_match',
    'index_versions_used',
    'seconds',
  }
  assert (workdir / 'learning.png').read_bytes().startswith(b'\x89PNG')
  assert summary['index_versions_used'] >= 2
  # At this size the retriever learns something from masked words alone, and
  # reading beats not reading.
  before = summary['zero_shot_recall@1_before_pretraining']
  after = summary['zero_shot_recall@1_after_pretraining']
  assert after > 1.2 * before
  assert summary['exact_match'] > 2 * summary['closed_book_exact_match']
