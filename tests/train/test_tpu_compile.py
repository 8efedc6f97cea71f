"""The paper's pre-training step compiles for a TPU v4 pod, without one.

In a process of its own: this one's devices are eight CPUs.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

_PROGRAM = """
import json
from realm_jax import experiment
from realm_jax.train import ahead, plan
from realm_jax.train.hardware import parse_topology

config = experiment.load('experiments/pretrain_wiki.py')
corpus = plan.Corpus(13353718, 288)
compile_pretrain = ahead.compile_pretrain
texts = []

def keep_text(*arguments):
    compiled = compile_pretrain(*arguments)
    texts.append(compiled.as_text())
    return compiled

ahead.compile_pretrain = keep_text
estimated, compiled = (
    plan.plan(config, corpus, parse_topology('v4:4x4x4'), None, 0.4, compile)
    for compile in (False, True)
)
[text] = texts
print(json.dumps({
    'estimated': estimated,
    'compiled': compiled,
    'local_scores': text.count('f32[512,104328]'),
    'scores': text.count('f32[512,13354'),
    'whole_batch': text.count('[4096,382,768]'),
}))
"""


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu is not installed: no TPU compiler here (pip install libtpu)',
)
def test_pretrain_step_fits_a_v4_pod():
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  result = subprocess.run(
    [sys.executable, '-c', _PROGRAM],
    env=environment,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  figures = json.loads(result.stdout.splitlines()[-1])
  estimated, compiled = figures['estimated'], figures['compiled']
  assert compiled['devices'] == 128 and compiled['compiled']
  assert compiled['fits'] and compiled['hbm_bytes_per_device'] < 2.5e9
  assert estimated['hbm_bytes_per_device'] == pytest.approx(
    compiled['hbm_bytes_per_device'], rel=0.15
  )
  assert compiled['collective_bytes_per_step'] > 1e9
  # 104,328 rows a device: their scores would be this much. No device holds
  # what belongs to the examples of others.
  names = ('scores', 'local_scores', 'whole_batch')
  assert [figures[name] for name in names] == [0, 0, 0]
