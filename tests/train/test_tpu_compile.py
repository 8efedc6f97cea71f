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
import jax
from realm_jax.train.ahead import compile_pretrain
from realm_jax import config as config_lib

config = config_lib.from_dict({
    'batch_size': 512, 'num_candidates': 8, 'query_length': 96,
    'model': {'compute_dtype': 'bfloat16', 'remat': 'full'},
    'num_steps': 200000,
})
compiled = compile_pretrain(config, 'v4:4x4x4', num_rows=13353718,
                            block_length=288)
memory = compiled.memory_analysis()
text = compiled.as_text()
print(json.dumps({
    'devices': 128,
    'bytes': memory.argument_size_in_bytes + memory.temp_size_in_bytes
             + memory.output_size_in_bytes - memory.alias_size_in_bytes,
    'temp': memory.temp_size_in_bytes,
    'local_scores': text.count('f32[512,104328]'),
    'scores': text.count('f32[512,13354'),
}))
"""


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu is not installed: no TPU compiler here (pip install libtpu)',
)
def test_pretrain_step_fits_a_v4_pod():
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'XLA_FLAGS': '',
  }
  result = subprocess.run(
    [sys.executable, '-c', _PROGRAM],
    env=environment,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  figures = json.loads(result.stdout.splitlines()[-1])
  assert figures['bytes'] < 16 * 2**30
  # 104,328 rows a device: their scores would be this much.
  assert figures['scores'] == 0 and figures['local_scores'] == 0
