"""Compiles a step ahead of time for a TPU topology that is not here."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding

from realm_jax.config import Config
from realm_jax.index.search import Index
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train.optimizer import make_optimizer
from realm_jax.train.pretrain import TRAINED, pretrain_step
from realm_jax.train.program import jit_step
from realm_jax.train.state import TrainState


def compile_pretrain(
  config: Config, topology: str, num_rows: int, block_length: int
) -> Any:
  """Lowers and compiles the pre-training step for a slice of TPUs.

  Args:
    config: of the run.
    topology: a TPU slice, `v4:4x4x4` for example.
    num_rows: N, blocks in the index.
    block_length: wordpieces of a block.

  Returns:
    The compiled step; `memory_analysis()` gives bytes a device.
  """
  devices = topologies.get_topology_desc(
    platform='tpu', topology_name=topology
  ).devices
  mesh = mesh_lib.make_mesh(config.mesh, list(devices))
  mesh_lib.check_batch(
    'batch_size', config.batch_size, mesh, config.micro_batches
  )
  abstract = jax.eval_shape(functools.partial(random_state, config))
  state = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    abstract,
    mesh_lib.tree_shardings(abstract, mesh),
  )
  step = functools.partial(pretrain_step, config=config, cls_id=101, sep_id=102)
  index = _index(config, num_rows, block_length, mesh)
  with jax.set_mesh(mesh):
    jitted = jit_step(step, mesh, state, index)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jitted.lower(state, _batch(config, mesh), index, key).compile()


def random_state(config: Config) -> TrainState:
  """A pre-training state of random parameters, to measure with."""
  key = jax.random.key(0)
  params = {'document_embedder': parts.init_part('embedder', config, key)}
  if not config.model.share_embedders:
    params['query_embedder'] = parts.init_part('embedder', config, key)
  params['encoder'] = parts.init_part('encoder', config, key)
  return TrainState.create(params, TRAINED, make_optimizer(config))


def _batch(config: Config, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  def array(length: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
      (config.batch_size, length),
      dtype,
      sharding=NamedSharding(mesh, mesh_lib.BATCH),
    )

  return {
    'query_BL': array(config.query_length),
    'position_BM': array(config.max_masks),
    'target_BM': array(config.max_masks),
    'weight_BM': array(config.max_masks, jnp.float32),
    'exclude_BX': array(config.index.max_excluded),
  }


def _index(
  config: Config, num_rows: int, block_length: int, mesh: jax.sharding.Mesh
) -> Index:
  total = mesh_lib.padded_rows(num_rows, mesh)

  def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
      (total, *shape), dtype, sharding=mesh_lib.rows_sharding(mesh)
    )

  return Index(
    array((config.model.retrieval_size,), config.index.rows_dtype),
    array((), jnp.bool_),
    array((block_length,), jnp.uint16),
    block=config.index.search_block,
  )
