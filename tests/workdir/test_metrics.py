import json
import os

import jax.numpy as jnp
import numpy as np

from realm_jax.workdir import metrics


def test_a_line_is_there_at_once_with_null_for_nan(tmp_path):
  writer = metrics.MetricsWriter(tmp_path)
  writer.write(
    5,
    {
      'loss': jnp.float32(0.5),
      'accuracy': np.float64('nan'),
      'spread': [1, float('inf')],
      'note': 'text',
      'alarm': np.bool_(True),
    },
  )
  line = json.loads((tmp_path / 'metrics.jsonl').read_text())
  assert line == {
    'step': 5,
    'loss': 0.5,
    'accuracy': None,
    'spread': [1, None],
    'note': 'text',
    'alarm': True,
  }
  writer.close()
  assert any('tfevents' in name for name in os.listdir(tmp_path))


def test_resume_drops_what_the_checkpoint_does_not_have(tmp_path):
  writer = metrics.MetricsWriter(tmp_path)
  for step in (1, 2, 3):
    writer.write(step, {'loss': step})
  writer.close()
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 4, "lo')  # killed here
  writer = metrics.MetricsWriter(tmp_path, resumed_step=2)
  writer.write(3, {'loss': 33})
  writer.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['loss'] for line in lines] == [1, 2, 33]
  metrics.MetricsWriter(tmp_path).close()  # a run from its start
  assert (tmp_path / 'metrics.jsonl').read_text() == ''


def test_swaps(tmp_path):
  log = metrics.SwapLog(tmp_path)
  log.write(0, 1, 0, staleness_steps=0)
  log.write(40, 2, 20, staleness_steps=np.int64(20))
  log.write(60, 3, 40)
  log = metrics.SwapLog(tmp_path, resumed_step=40)
  log.write(50, 3, 40, overlap=jnp.float32(0.25))
  assert metrics.read_swaps(tmp_path) == [
    {'step': 0, 'version': 1, 'checkpoint_step': 0, 'staleness_steps': 0},
    {'step': 40, 'version': 2, 'checkpoint_step': 20, 'staleness_steps': 20},
    {'step': 50, 'version': 3, 'checkpoint_step': 40, 'overlap': 0.25},
  ]
