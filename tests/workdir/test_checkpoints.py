import functools
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore as ts
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from realm_jax.workdir import checkpoints, digest, files

META = {'embedder_digest': 'ee', 'index_version': 3}


@functools.cache
def make_mesh(data, model):
  kind = jax.sharding.AxisType.Auto
  return jax.make_mesh((data, model), ('data', 'model'), axis_types=(kind,) * 2)


def make_state(seed=0, width=16):
  key = jax.random.key(seed)
  params = {
    'document_embedder': {
      'layers': {'kernel': jax.random.normal(key, (8, 16))}
    },
    'encoder': {
      'kernel': jax.random.normal(key, (16, width)),
      'bias': jnp.ones(3, jnp.bfloat16),
    },
  }
  return {'params': params, 'opt_state': optax.adamw(1e-3).init(params)}


def abstract_state(state, mesh=None):
  def leaf(x):
    sharding = None
    if mesh is not None:
      spec = P('data', 'model') if x.ndim == 2 else P()
      sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(leaf, state)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  assert digest.tree_digest(a) == digest.tree_digest(b)


def read_saved(path):
  return [(x['step'], x['index_version']) for x in files.read_lines(path)]


def test_state_comes_back_on_any_layout_bit_for_bit(tmp_path):
  saver = checkpoints.Checkpoints(tmp_path, keep=2)
  state = make_state()
  mesh = make_mesh(4, 2)
  placed = jax.device_put(
    state, jax.tree.map(lambda x: x.sharding, abstract_state(state, mesh))
  )
  saver.save(5, placed, META)
  for shape in ((2, 4), (8, 1)):
    abstract = abstract_state(state, make_mesh(*shape))
    restored = saver.restore(5, abstract)
    assert_same(restored, state)
    jax.tree.map(
      lambda x, y: x.sharding == y.sharding or 1 / 0, restored, abstract
    )
  as_numpy = saver.restore(5, abstract_state(state))
  assert isinstance(as_numpy['params']['encoder']['bias'], np.ndarray)
  assert_same(as_numpy, state)
  assert checkpoints.read_meta(tmp_path, 5)['index_version'] == 3
  saver.close()


def test_saving_goes_on_while_training_reuses_the_buffers(tmp_path):
  saver = checkpoints.Checkpoints(tmp_path, keep=3)
  step = jax.jit(
    lambda x: jax.tree.map(lambda leaf: leaf + 1, x), donate_argnums=0
  )
  params = {'encoder': {'kernel': jnp.zeros((512, 1024))}}
  for number in range(6):
    if number % 2 == 0:
      saver.save(number, {'params': params}, META)
    params = step(params)
  saver.wait()
  for number in (0, 2, 4):
    read = checkpoints.restore_part(
      tmp_path,
      number,
      'encoder',
      checkpoints.params_shapes(tmp_path, number)['encoder'],
    )
    assert (read['kernel'] == number).all()
  saver.close()


def test_the_newest_and_the_best_stay(tmp_path):
  saver = checkpoints.Checkpoints(tmp_path, keep=2, keep_best=True)
  state = make_state()
  for step, score in enumerate([1.0, 9.0, 3.0, None, 4.0]):
    saver.save(step, state, META, score=score)
  saver.close()
  assert checkpoints.steps(tmp_path) == [1, 3, 4]
  assert checkpoints.best_step(tmp_path) == 1
  # The record outlives the checkpoint; nothing else does.
  assert [step for step, _ in read_saved(tmp_path / 'saved.jsonl')] == [
    *range(5)
  ]
  assert checkpoints.read_record(tmp_path, 0) == {
    'step': 0,
    'embedder_digest': 'ee',
    'index_version': 3,
    'score': 1.0,
  }
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == [
    '1',
    '3',
    '4',
    'deleted',
  ]
  assert list((tmp_path / 'checkpoints' / 'deleted').iterdir()) == []
  # A resumed run remembers which was best.
  saver = checkpoints.Checkpoints(tmp_path, keep=2, keep_best=True)
  assert saver.latest_step() == 4
  saver.save(5, state, META, score=2.0)
  saver.close()
  assert checkpoints.steps(tmp_path) == [1, 4, 5]


def bytes_read():
  name = '/tensorstore/kvstore/file/bytes_read'
  (metric,) = ts.experimental_collect_matching_metrics(name)
  return metric['values'][0]['value']


def test_a_part_is_read_alone(tmp_path):
  """Neither optimizer state nor the other parts are touched."""
  saver = checkpoints.Checkpoints(tmp_path, keep=2)
  state = make_state(width=2**16)  # the encoder: 4 MiB
  saver.save(1, state, META)
  saver.close()
  shutil.rmtree(tmp_path / 'checkpoints' / '1' / 'opt_state')
  part = state['params']['document_embedder']
  before = bytes_read()
  mesh = make_mesh(2, 4)
  read = checkpoints.restore_part(
    tmp_path, 1, 'document_embedder', abstract_state(part, mesh)
  )
  assert bytes_read() - before < 2**17
  assert_same(read, part)
  assert read['layers']['kernel'].sharding.spec == P('data', 'model')
  shapes = checkpoints.params_shapes(tmp_path, 1)
  assert shapes == abstract_state(state['params'])


def test_another_model_is_refused_by_name(tmp_path):
  saver = checkpoints.Checkpoints(tmp_path, keep=2)
  state = make_state()
  saver.save(1, state, META)
  wider = abstract_state(make_state(width=32))
  with pytest.raises(
    ValueError,
    match=r'encoder/kernel is float32\[16, 16\], .* float32\[16, 32\]',
  ):
    saver.restore(1, wider)
  less = abstract_state(state)
  del less['params']['encoder']['bias']
  with pytest.raises(ValueError, match='the model here has no encoder/bias'):
    saver.restore(1, less)
  with pytest.raises(
    ValueError, match=r'has no reader/x; has document_embedder, encoder'
  ):
    leaf = {'x': jax.ShapeDtypeStruct((2,), np.float32)}
    checkpoints.restore_part(tmp_path, 1, 'reader', leaf)
  half = {'kernel': jax.ShapeDtypeStruct((16, 16), jnp.bfloat16)}
  with pytest.raises(ValueError, match=r'is float32\[16, 16\], .* bfloat16'):
    checkpoints.restore_part(tmp_path, 1, 'encoder', half)
  with pytest.raises(
    FileNotFoundError, match=r'checkpoints/2: no such .*\[1\]'
  ):
    checkpoints.restore_part(tmp_path, 2, 'encoder', half)
  with pytest.raises(ValueError, match='checkpoints/1: is saved already'):
    saver.save(1, state, META)
  with pytest.raises(ValueError, match='no checkpoint of step 2 was saved'):
    checkpoints.read_record(tmp_path, 2)
  saver.close()


def test_a_step_that_was_not_recorded_is_recorded_on_resume(tmp_path):
  saver = checkpoints.Checkpoints(tmp_path, keep=2)
  saver.save(1, make_state(), META)
  saver.close()
  (tmp_path / 'saved.jsonl').write_text('{"ste')  # killed in mid-line
  assert checkpoints.read_record(tmp_path, 1)['embedder_digest'] == 'ee'
  checkpoints.Checkpoints(tmp_path, keep=2).close()
  assert read_saved(tmp_path / 'saved.jsonl') == [(1, 3)]
  # A run that repeats a step records it again, and the last line counts.
  with open(tmp_path / 'saved.jsonl', 'a') as file:
    file.write(json.dumps({'step': 1, 'embedder_digest': 'new'}) + '\n')
  assert checkpoints.read_record(tmp_path, 1)['embedder_digest'] == 'new'


def test_a_step_that_was_deleted_by_hand_is_forgotten(tmp_path):
  saver = checkpoints.Checkpoints(tmp_path, keep=1)
  for step in (1, 2, 3):
    saver.save(step, make_state(), META)
    saver.wait()
    if step == 2:
      shutil.copytree(tmp_path / 'checkpoints' / '2', tmp_path / 'copy')
  saver.close()
  shutil.rmtree(tmp_path / 'checkpoints' / '3')
  (tmp_path / 'copy').rename(tmp_path / 'checkpoints' / '2')
  checkpoints.Checkpoints(tmp_path, keep=1).close()
  assert [s for s in range(5) if checkpoints.was_saved(tmp_path, s)] == [1, 2]
  with pytest.raises(ValueError, match='no checkpoint of step 3 was saved'):
    checkpoints.read_record(tmp_path, 3)


_TRAIN = """
import sys
import jax.numpy as jnp
from realm_jax.workdir import checkpoints
saver = checkpoints.Checkpoints(sys.argv[1], keep=2)
step = saver.latest_step() or 0
while True:
  step += 1
  params = {'encoder': {'kernel': jnp.full((256, 256), step, jnp.float32)}}
  saver.save(step, {'params': params, 'opt_state': params},
    {'embedder_digest': str(step), 'index_version': None})
  print(step, flush=True)
"""


def start_training(path):
  return subprocess.Popen(
    [sys.executable, '-c', _TRAIN, path],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )


def test_poll_beside_a_trainer_that_is_killed(tmp_path):
  """What is listed is whole, or gone in one move."""
  abstract = {'kernel': jax.ShapeDtypeStruct((256, 256), np.float32)}
  seen = 0
  for saves in (3, 4):
    with start_training(tmp_path) as trainer:
      try:
        for _ in range(saves):
          assert trainer.stdout.readline()
          for step in checkpoints.steps(tmp_path):
            try:
              read = checkpoints.restore_part(
                tmp_path, step, 'encoder', abstract
              )
            except FileNotFoundError:
              continue
            assert (read['kernel'] == step).all()
            assert checkpoints.read_record(tmp_path, step)[
              'embedder_digest'
            ] == str(step)
            seen += 1
      finally:
        trainer.kill()
    left = checkpoints.steps(tmp_path)
    for step in left:
      read = checkpoints.restore_part(tmp_path, step, 'encoder', abstract)
      assert (read['kernel'] == step).all()
  assert seen
  # The next run takes up the newest, and clears what was half written.
  saver = checkpoints.Checkpoints(tmp_path, keep=2)
  assert saver.latest_step() == left[-1]
  saver.close()
  names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert names - {'deleted'} == set(map(str, left))
  recorded = [step for step, _ in read_saved(tmp_path / 'saved.jsonl')]
  assert recorded == sorted(recorded) and set(left) <= set(recorded)


def test_a_full_disk_is_an_os_error(tmp_path):
  code = """
import resource, signal, sys
import jax
from realm_jax.workdir import checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
saver = checkpoints.Checkpoints(sys.argv[1], keep=2)
meta = {'embedder_digest': 'e', 'index_version': None}
big = {'params': {'encoder': {'kernel': jax.random.normal(
  jax.random.key(0), (512, 512))}}}
saver.save(1, big, meta)
saver.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
try:
  saver.save(2, big, meta)
  saver.wait()
except OSError as error:
  print('full:', error)
"""
  done = subprocess.run(
    [sys.executable, '-c', code, tmp_path],
    capture_output=True,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  assert 'full:' in done.stdout, done.stderr[-2000:]
  assert checkpoints.steps(tmp_path) == [1]
  checkpoints.Checkpoints(tmp_path, keep=2).close()
  assert read_saved(tmp_path / 'saved.jsonl') == [(1, None)]


def test_saving_asks_nothing_of_the_preemption_service(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(
    'jax.experimental.multihost_utils.reached_preemption_sync_point',
    asked.append,
  )
  saved = checkpoints.Checkpoints(tmp_path, keep=2)
  saved.save(14, make_state(), META)
  saved.close()
  assert not asked
