import json

import jax.numpy as jnp
import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog

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
  (path,) = tmp_path.glob('events.out.tfevents.*')
  _, start, event = events(path)
  assert start.session_log.status == SessionLog.START
  found = {value.tag: value.simple_value for value in event.summary.value}
  assert (event.step, found) == (5, {'loss': 0.5})


def events(path):
  data, found = path.read_bytes(), []
  while data:
    size = int.from_bytes(data[:8], 'little')
    found.append(Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  return found


def test_events_that_cannot_be_written_end_alone(tmp_path, monkeypatch, capsys):
  writer = metrics.MetricsWriter(tmp_path)

  def full(*_):
    raise OSError('no space left')

  monkeypatch.setattr(metrics.EventsWriter, 'write_event', full)
  for step in range(1, 31):
    writer.write(step, {'loss': step})
  writer.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert len(lines) == 30
  said = capsys.readouterr().err
  assert said == 'no more TensorBoard events: no space left\n'


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
