"""The quickstart at its small size, as a user starts it."""

import json
import os
import subprocess
import sys
import time


def test_small_quickstart(tmp_path):
  workdir = tmp_path / 'run'
  command = [
    *(sys.executable, '-m', 'realm_jax', 'quickstart'),
    *('--workdir', str(workdir), '--size', 'small'),
  ]
  options = {'text': True, 'env': {**os.environ, 'XLA_FLAGS': ''}}
  # Stopped in pre-training, it goes on there.
  first = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
  logged = workdir / 'pretrain' / 'metrics.jsonl'
  while first.poll() is None and not (logged.exists() and logged.read_text()):
    time.sleep(0.1)
  first.terminate()
  said = first.communicate(timeout=300)[1]
  assert first.returncode == 75, said[-3000:]
  assert 'stopped by SIGTERM' in said
  other = [*command, '--seed', '1']
  refused = subprocess.run(other, capture_output=True, **options)
  assert refused.returncode == 2
  assert 'was begun with --seed 0 --size small' in refused.stderr
  result = subprocess.run(command, capture_output=True, timeout=1500, **options)
  assert result.returncode == 0, result.stderr[-3000:]
  assert 'What the model learned' in result.stderr
  assert 'mlm 20/' not in result.stderr  # not done again
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
