r"""The pre-training step against the machine's own rate of matrix products.

  . launch/env.sh cpu
  python experiments/benchmarks/step.py

BERT-base sizes, batch 8, 8 candidates, texts of 96 and 288 wordpieces without
padding, random weights and words, rows of the index resident. Prints one line
of JSON: FLOP/s of the model (`realm_jax/train/flops.py`: without
recomputation) as a share of one large `jnp.matmul` in the same run, timed
before and after.
"""

import argparse
import functools
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax import config as config_lib
from realm_jax.config import Config
from realm_jax.index.search import Index
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train.ahead import random_state
from realm_jax.train.flops import pretrain_flops
from realm_jax.train.pretrain import pretrain_step
from realm_jax.train.program import jit_step
from realm_jax.train.state import TrainState

_CLS, _SEP, _MASK = 101, 102, 103


def matmul_rate(dtype: str, size: int, repeats: int = 5) -> float:
  """FLOP/s of one product of [size, size] matrices, the median."""
  x = jax.random.normal(jax.random.key(0), (size, size), dtype)
  multiply = jax.jit(jnp.matmul)
  multiply(x, x).block_until_ready()
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    multiply(x, x).block_until_ready()
    times.append(time.perf_counter() - began)
  return 2 * size**3 / statistics.median(times)


def make_config(flags: argparse.Namespace) -> Config:
  return config_lib.from_dict(
    {
      'batch_size': flags.batch,
      'micro_batches': flags.micro_batches,
      'num_candidates': flags.candidates,
      'query_length': 96,
      'index': {'rows_dtype': flags.dtype},
      'model': {
        'num_layers': flags.layers,
        'compute_dtype': flags.dtype,
        'dropout': flags.dropout,
        'remat': flags.remat,
      },
    }
  )


def make_batch(config: Config) -> dict[str, np.ndarray]:
  random = np.random.default_rng(0)
  size, masks = config.batch_size, config.max_masks
  shape = (size, config.query_length)
  query = random.integers(1000, 30000, shape, dtype=np.int32)
  query[:, 0], query[:, -1] = _CLS, _SEP
  position = np.tile(np.arange(1, 1 + masks, dtype=np.int32), (size, 1))
  target = query[:, 1 : 1 + masks].copy()
  query[:, 1 : 1 + masks] = _MASK
  return {
    'query_BL': query,
    'position_BM': position,
    'target_BM': target,
    'weight_BM': np.ones((size, masks), np.float32),
    'exclude_BX': np.full((size, config.index.max_excluded), -1, np.int32),
  }


def make_index(
  config: Config, rows: int, length: int, mesh: jax.sharding.Mesh
) -> Index:
  """Random rows and words, made on the devices."""

  def create() -> Index:
    keys = jax.random.split(jax.random.key(1))
    token = jax.random.randint(keys[0], (rows, length), 1000, 30000)
    token = token.at[:, 0].set(_CLS).at[:, 4].set(_SEP).at[:, -1].set(_SEP)
    return Index(
      jax.random.normal(
        keys[1], (rows, config.model.retrieval_size), config.index.rows_dtype
      ),
      jnp.ones(rows, bool),
      token.astype(jnp.uint16),
      block=config.index.search_block,
    )

  return jax.jit(create, out_shardings=mesh_lib.rows_sharding(mesh))()


def make_state(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
  create = functools.partial(random_state, config)
  shardings = mesh_lib.tree_shardings(jax.eval_shape(create), mesh)
  return jax.jit(create, out_shardings=shardings)()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--micro-batches', type=int, default=8)
  parser.add_argument('--candidates', type=int, default=8)
  parser.add_argument('--layers', type=int, default=12)
  parser.add_argument('--rows', type=int, default=65536)
  parser.add_argument('--block-length', type=int, default=288)
  parser.add_argument('--dropout', type=float, default=0.1)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--remat', default='none')
  parser.add_argument('--steps', type=int, default=3)
  parser.add_argument('--matmul', type=int, default=4096)
  parser.add_argument('--profile', help='directory for a trace of one step')
  flags = parser.parse_args()
  print(json.dumps(measure(flags)))


def measure(flags: argparse.Namespace) -> dict[str, Any]:
  """Times the steps; see the module."""
  config = make_config(flags)
  mesh = mesh_lib.make_mesh(config.mesh)
  index = make_index(config, flags.rows, flags.block_length, mesh)
  state = make_state(config, mesh)
  step = jit_step(
    functools.partial(pretrain_step, config=config, cls_id=_CLS, sep_id=_SEP),
    mesh,
    state,
    index,
  )
  batch = mesh_lib.put_batch(make_batch(config), mesh)
  rates = [matmul_rate(flags.dtype, flags.matmul)]
  times = []
  with jax.set_mesh(mesh):
    for number in range(flags.steps + 1):
      profiled = flags.profile and number == flags.steps
      if profiled:
        jax.profiler.start_trace(flags.profile)
      began = time.perf_counter()
      key = jax.random.fold_in(jax.random.key(4, impl='rbg'), number)
      state, index, metrics = step(state, batch, index, key)
      jax.block_until_ready((state, metrics))
      times.append(time.perf_counter() - began)
      if profiled:
        jax.profiler.stop_trace()
  rates.append(matmul_rate(flags.dtype, flags.matmul))
  rate = statistics.mean(rates) * mesh.size
  flops = pretrain_flops(config, flags.block_length, flags.rows)
  seconds = statistics.median(times[1:])
  return {
    **vars(flags),
    'device': jax.devices()[0].device_kind,
    'devices': mesh.size,
    'compile_and_first_step_s': round(times[0], 2),
    'step_s': [round(t, 3) for t in times[1:]],
    'examples_per_second': round(flags.batch / seconds, 4),
    'model_tflop': round(flops / 1e12, 3),
    'gflops': round(flops / seconds / 1e9, 1),
    'matmul_gflops': [round(r / 1e9, 1) for r in rates],
    'share_of_matmul': round(flops / seconds / rate, 3),
    'loss': round(float(metrics['loss']), 3),
    'programs': step._cache_size(),
  }


if __name__ == '__main__':
  main()
