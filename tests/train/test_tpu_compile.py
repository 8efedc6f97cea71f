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


_SEARCH = """
import json
import re
import jax
import jax.numpy as jnp
from realm_jax import experiment
from realm_jax.index.search import Index, search
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train import ahead, flops
from realm_jax.train.hardware import parse_topology

config = experiment.load('experiments/pretrain_wiki.py')
n = 13353718
devices = ahead.tpu_devices(parse_topology('v4:4x4x4'))
mesh = mesh_lib.make_mesh(config.mesh, devices)

def rows(*shape_dtype):
    return jax.ShapeDtypeStruct(
        *shape_dtype, sharding=mesh_lib.rows_sharding(mesh)
    )

total = mesh_lib.padded_rows(n, mesh)
index = Index(
    rows((total, 128), jnp.bfloat16),
    rows((total,), jnp.bool_),
    rows((total, 288), jnp.uint16),
    block=config.index.search_block,
)
query = jax.ShapeDtypeStruct(
    (512, 128), jnp.float32, sharding=mesh_lib.replicated(mesh)
)
with jax.set_mesh(mesh):
    compiled = jax.jit(search, static_argnums=2).lower(index, query, 15)
    compiled = compiled.compile()
products = re.findall(
    r'= f32\\[4096,512\\].* convolution\\(', compiled.as_text()
)
once = 2 * 512 * n * 128
step = flops.pretrain_flops(config, 288, n) - once
print(json.dumps({
    'temporary': compiled.memory_analysis().temp_size_in_bytes,
    'products': len(products),
    'share': len(products) * once / (step + len(products) * once),
}))
"""


_needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu is not installed: no TPU compiler here (pip install libtpu)',
)


def _run(program):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  result = subprocess.run(
    [sys.executable, '-c', program],
    env=environment,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  return json.loads(result.stdout.splitlines()[-1])


@_needs_libtpu
def test_pretrain_step_fits_a_v4_pod():
  figures = _run(_PROGRAM)
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


@_needs_libtpu
def test_search_is_a_small_part_of_the_step():
  """Of 13,353,718 rows on 128 devices for 512 queries, 7 + 8 results each."""
  figures = _run(_SEARCH)
  assert figures['temporary'] < 64 * 2**20
  # A float32 query times bfloat16 rows: three products, not six.
  assert figures['products'] == 3
  assert figures['share'] < 0.005
