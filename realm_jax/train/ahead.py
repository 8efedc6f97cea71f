"""Compiles a step ahead of time for a TPU topology that is not here."""

import functools
import importlib.util
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding

from realm_jax.config import Config
from realm_jax.corpus.arrays import token_type
from realm_jax.index import approximate, scann, shards
from realm_jax.index.search import Index
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train.hardware import Topology
from realm_jax.train.inputs import candidates
from realm_jax.train.optimizer import make_optimizer
from realm_jax.train.pretrain import TRAINED, pretrain_step
from realm_jax.train.program import jit_step
from realm_jax.train.state import TrainState


def compile_pretrain(
  config: Config, topology: Topology, num_rows: int, block_length: int
) -> Any:
  """Lowers and compiles the pre-training step for slices of TPUs.

  Args:
    config: of the run.
    topology: of TPUs.
    num_rows: N, blocks in the index.
    block_length: wordpieces of a block.

  Returns:
    The compiled step; `memory_analysis()` gives bytes a device.

  Raises:
    ValueError: a GPU, a slice that does not exist, or no TPU compiler here.
  """
  mesh = mesh_lib.make_mesh(config.mesh, tpu_devices(topology))
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
  step = functools.partial(
    pretrain_step, config=config, cls_id=101, sep_id=102, num_rows=num_rows
  )
  index = _index(config, num_rows, block_length, mesh)
  with jax.set_mesh(mesh):
    jitted = jit_step(step, mesh, state, index)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jitted.lower(state, _batch(config, mesh), index, key).compile()


def tpu_devices(topology: Topology) -> list[jax.Device]:
  """Descriptions of the devices of a slice, which need not be here."""
  if not topology.is_tpu:
    raise ValueError(
      f'--topology {topology.text}: only TPUs can be compiled for without one'
    )
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError('--compile: needs the TPU compiler, pip install libtpu')
  # Without a TPU: ask no metadata server, let two compilers run side by side.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  try:
    found = topologies.get_topology_desc(
      platform='tpu',
      topology_name=f'{topology.name}:{topology.layout}',
      num_slices=topology.slices,
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f'--topology {topology.text}: {error}') from error
  return list(found.devices)


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

  batch = {
    'query_BL': array(config.query_length),
    'position_BM': array(config.max_masks),
    'target_BM': array(config.max_masks),
    'weight_BM': array(config.max_masks, jnp.float32),
    'exclude_BX': array(config.index.max_excluded),
  }
  if config.index.kind == 'scann_host':
    found = candidates('pretrain', config)
    batch['found_score_BK'] = array(found, jnp.float32)
    batch['found_row_BK'] = array(found)
  return batch


def _index(
  config: Config, num_rows: int, block_length: int, mesh: jax.sharding.Mesh
) -> Index:
  total = shards.padded_rows(config, num_rows, mesh)

  def array(
    shape: tuple[int, ...],
    dtype: Any,
    total: int = total,
    on_host: bool = False,
  ) -> jax.ShapeDtypeStruct:
    sharding = mesh_lib.rows_sharding(mesh, on_host)
    return jax.ShapeDtypeStruct((total, *shape), dtype, sharding=sharding)

  refresh = config.refresh
  rows_NE, tree = None, None
  if config.index.kind != 'scann_host':
    rows_NE = array((config.model.retrieval_size,), config.index.rows_dtype)
  if config.index.kind == 'scann':
    parts = approximate.shapes(config, num_rows)
    tree = scann.Tree(
      **{
        name: array(leaf.shape, leaf.dtype, config.index.num_shards)
        for name, leaf in parts.items()
      },
      leaves=config.index.num_leaves_to_search,
      reorder=config.index.reordering_num_neighbors,
    )
  return Index(
    rows_NE,
    array((), jnp.bool_),
    array(
      (block_length,),
      token_type(config.model.vocab_size),
      mesh_lib.padded_rows(num_rows, mesh),
      on_host=config.index.token_table == 'host',
    ),
    block=config.index.search_block,
    tree=tree,
    step_N=array((), jnp.int32) if refresh.changes_rows() else None,
    hits_N=array((), jnp.int32) if refresh.priority_rows else None,
  )
