"""What pre-training needs of a machine, before it is paid for.

Estimates count what must be there: shapes, and how `parallel/mesh.py` splits
them. With a TPU compiler the real step is compiled ahead of time instead, and
the compiler's figures take the place of the estimates.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from realm_jax.config import Config
from realm_jax.corpus.arrays import token_type
from realm_jax.index import memory
from realm_jax.model import parts as parts_lib
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train import ahead, losses, pretrain, refresh_policy, renew
from realm_jax.train.collectives import bytes_sent
from realm_jax.train.flops import bert_flops, pretrain_flops
from realm_jax.train.hardware import Topology

# Blocks embedded in a second beside the refresher's own search and writing:
# measured 0.9 of the bare embedder (experiments/benchmarks/refresh.py).
_REFRESH_SHARE = 0.9
# XLA's heap over what lives at once in it: 1.2 to 1.7 in 20 compilations for
# TPUs (launch/plan.md).
_PACKING = 1.5
_WORD_TABLES = 3  # uses: of queries, documents, joint texts
_LANES = 128  # of a TPU: rows of an array are padded to a multiple


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The size of Z.

  Attributes:
    blocks: N.
    block_length: wordpieces of a block.
  """

  blocks: int
  block_length: int


def plan(
  config: Config,
  corpus: Corpus,
  topology: Topology,
  refresher: Topology | None,
  efficiency: float,
  compile: bool,
) -> dict[str, Any]:
  """Sizes and times of a pre-training run.

  Args:
    config: of the run.
    corpus: size of Z.
    topology: of the trainer.
    refresher: of the refresh job (`refresh.where` separate); None: a quarter
      of the trainer's chips.
    efficiency: share of the peak that is taken to be reached.
    compile: compile the step for the topology, a TPU's.

  Returns:
    Bytes are of one device, but for `index_version_bytes` (on disk);
    `flops_per_step` and chips of all; collective bytes what a device sends.
    What `refresh_*` and `staleness_steps_estimate` are says `_refresh`.

  Raises:
    ValueError: the mesh or the batch does not fit the topology; `compile`
      without a TPU compiler or for a GPU; a refresher where there is none.
  """
  if config.num_candidates - 1 > corpus.blocks:
    raise ValueError(
      f'config.num_candidates: {config.num_candidates} (null included), but '
      f'there are {corpus.blocks} blocks'
    )
  if refresher is not None and config.refresh.where != 'separate':
    raise ValueError(
      f'--refresh-topology {refresher.text}: config.refresh.where is '
      f'{config.refresh.where}, there is no refresh job'
    )
  mesh = _abstract_mesh(config, topology)
  state = jax.eval_shape(functools.partial(ahead.random_state, config))
  parts = {
    'parameters': _tree_bytes(state.params, mesh),
    'optimizer': _tree_bytes(state.opt_state, mesh),
    **_index_bytes(config, corpus, topology.devices),
  }
  # A gradient is as large as its parameter.
  living = parts['parameters'] + _living_bytes(config, corpus, mesh)
  if topology.slices > 1:
    living += _between_slices_bytes(config)
  if topology.is_tpu:
    living = max(living, _token_copy_bytes(config, corpus, topology.devices))
  parts['activations'] = round(_PACKING * living)
  collectives = _collective_bytes(config, corpus, state.params, mesh)
  if compile:
    compiled = ahead.compile_pretrain(
      config, topology, corpus.blocks, corpus.block_length
    )
    parts['activations'] = _compiled_activations(compiled, parts)
    collectives = bytes_sent(compiled.as_text())
  total = sum(parts.values())
  flops = pretrain_flops(config, corpus.block_length, corpus.blocks)
  step_seconds = flops / (topology.flops * efficiency)
  return {
    'topology': topology.text,
    'chips': topology.chips,
    'devices': topology.devices,
    'mesh': dict(mesh.shape),
    'blocks': corpus.blocks,
    'block_length': corpus.block_length,
    'compiled': compile,
    'hbm_bytes_per_device': total,
    **{f'{name}_bytes_per_device': size for name, size in parts.items()},
    'hbm_limit_bytes_per_device': topology.device_memory,
    'fits': total <= topology.device_memory,
    'flops_per_step': flops,
    'collective_bytes_per_step': sum(collectives.values()),
    'collective_bytes_per_step_by_kind': collectives,
    'assumed_efficiency': efficiency,
    'step_seconds_estimate': step_seconds,
    **_refresh(config, corpus, topology, refresher, efficiency, step_seconds),
    'index_version_bytes': _version_bytes(config, corpus),
  }


def _refresh(
  config: Config,
  corpus: Corpus,
  topology: Topology,
  refresher: Topology | None,
  efficiency: float,
  step_seconds: float,
) -> dict[str, Any]:
  """The chips that renew the index, the seconds that takes, and how old it is.

  By `refresh.where`:

  separate: the seconds from a checkpoint to its version, which is so old when
    it comes in (`staleness_steps_estimate`), and twice that when the next does.
  in_process: the seconds that training stops; the age that an index reaches.
  rolling: the seconds of a round, in which training goes on; the age of the
    oldest row.
  none: no chips, no seconds (None); the age after the last step.
  """
  refresh, num_steps = config.refresh, config.num_steps

  def embedding(flops: float) -> float:
    embed = bert_flops(config.model, corpus.blocks, corpus.block_length)
    return embed / (flops * efficiency * _REFRESH_SHARE)

  if refresh.where == 'separate':
    chips, flops = topology.chips / 4, topology.flops / 4
    if refresher is not None:
      chips, flops = refresher.chips, refresher.flops
    seconds = embedding(flops)
    age = seconds / step_seconds
  elif refresh.where == 'in_process':
    chips, seconds = topology.chips, embedding(topology.flops)
    age = refresh_policy.longest(refresh, num_steps) + refresh.delay()
    age = min(age, num_steps)
  elif refresh.where == 'rolling':
    turns = renew.rounds(corpus.blocks, refresh.rows_per_step)
    chips, seconds = topology.chips, turns * step_seconds
    age = min(turns + 1, num_steps)
  else:
    chips, seconds, age = 0, None, num_steps
  return {
    'refresh_chips': chips,
    'refresh_seconds_estimate': seconds,
    'staleness_steps_estimate': age,
  }


def _compiled_activations(
  compiled: jax.stages.Compiled, parts: dict[str, int]
) -> int:
  """Bytes of a device that are none of the program's arguments."""
  memory = compiled.memory_analysis()
  arguments = sum(parts.values()) - parts['activations']
  arguments -= parts['second_index_buffer']
  # What the compiler pads the arguments by is its business too.
  return (
    memory.argument_size_in_bytes
    - arguments
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )


def _abstract_mesh(
  config: Config, topology: Topology
) -> jax.sharding.AbstractMesh:
  data, model = mesh_lib.mesh_shape(config.mesh, topology.devices)
  mesh = jax.sharding.AbstractMesh((data, model), ('data', 'model'))
  mesh_lib.check_batch(
    'batch_size', config.batch_size, mesh, config.micro_batches
  )
  return mesh


def _tree_bytes(tree: Any, mesh: jax.sharding.AbstractMesh) -> int:
  """Of a device's part of parameters or moments."""
  shards = mesh_lib.parameter_shards(mesh.shape['data'])
  sizes = {'data': shards, 'model': mesh.shape['model']}

  def share(leaf: jax.ShapeDtypeStruct) -> int:
    axes = mesh_lib.parameter_spec(leaf.shape, mesh)
    split = math.prod(sizes[axis] for axis in axes if axis is not None)
    return leaf.size * leaf.dtype.itemsize // split

  return sum(map(share, jax.tree.leaves(tree)))


def _version_bytes(config: Config, corpus: Corpus) -> int:
  width = jnp.dtype(config.index.rows_dtype).itemsize
  return corpus.blocks * config.model.retrieval_size * width


def _index_bytes(
  config: Config, corpus: Corpus, devices: int
) -> dict[str, int]:
  parts = memory.device_bytes(
    config, corpus.blocks, corpus.block_length, devices
  )
  return {
    'index': parts['version'] + parts['valid'],
    'second_index_buffer': (
      (config.refresh.index_copies() - 1) * parts['version']
      if config.num_candidates > 1
      else 0
    ),
    'token_table': parts['token_table'],
  }


def _living_bytes(
  config: Config, corpus: Corpus, mesh: jax.sharding.AbstractMesh
) -> int:
  """What lives at once beside arguments and gradients, at the fullest moment.

  That is when the backward pass of the joint texts begins: what autodiff keeps
  of all towers (JAX says what, from the code that runs), and of the layer whose
  gradient is taken attention's scores and what goes in and out; XLA fuses the
  rest of a layer that is recomputed.
  """
  batch = config.batch_size // config.micro_batches // mesh.shape['data']
  kept = sum(
    _kept_bytes(run, params)
    for run, params in _towers(config, batch, corpus.block_length)
  )
  model = config.model
  wide = jnp.dtype(model.compute_dtype).itemsize
  texts = batch * config.num_candidates
  length = config.query_length + corpus.block_length - 2
  attention = 5 * texts * length * model.hidden_size * wide
  if model.attention != 'cudnn':
    attention += texts * model.num_heads * length**2 * 4
  return kept + attention


def _between_slices_bytes(config: Config) -> int:
  """Gradients of the word table, one of each use, are sent between slices last.

  And live until then.
  """
  return _WORD_TABLES * config.model.vocab_size * config.model.hidden_size * 4


def _token_copy_bytes(config: Config, corpus: Corpus, devices: int) -> int:
  """XLA keeps the token table by columns on a TPU, and gathers from a copy.

  That is gone before the candidates are read.
  """
  rows = -(-corpus.blocks // devices)
  row = math.ceil(corpus.block_length / _LANES) * _LANES
  return rows * row * jnp.dtype(token_type(config.model.vocab_size)).itemsize


def _towers(
  config: Config, batch: int, block_length: int
) -> list[tuple[Callable[[Any], jax.Array], Any]]:
  """Each pass of a BERT over a device's examples, and its parameters."""
  embedder, encoder = (
    jax.eval_shape(
      lambda part=part: parts_lib.init_part(part, config, jax.random.key(0))
    )
    for part in ('embedder', 'encoder')
  )
  key = jax.random.key(0)
  candidates = config.num_candidates

  def embed(shape: tuple[int, int]) -> Callable[[Any], jax.Array]:
    token_BL = jnp.ones(shape, jnp.int32)
    return lambda params: parts_lib.bind('embedder', config, params)(
      token_BL, sep_id=1, key=key
    )

  def read(params: Any) -> jax.Array:
    target_BM = jnp.ones((batch, config.max_masks), jnp.int32)
    logits_BKMV = pretrain.read_masked(
      {'encoder': params},
      {
        'query_BL': jnp.ones((batch, config.query_length), jnp.int32),
        'position_BM': target_BM,
      },
      jnp.ones((batch, candidates, block_length), jnp.int32),
      key,
      config,
      sep_id=1,
    )
    target_BKM = jnp.broadcast_to(target_BM[:, None], logits_BKMV.shape[:3])
    return losses.token_log_probs(logits_BKMV, target_BKM)

  documents = (batch * max(candidates - 1, 1), block_length)
  return [
    (embed((batch, config.query_length)), embedder),
    (embed(documents), embedder),
    (read, encoder),
  ]


def _kept_bytes(run: Callable[[Any], jax.Array], params: Any) -> int:
  """What autodiff keeps between the passes, without the parameters."""
  kept = jax.eval_shape(lambda params: jax.vjp(run, params)[1], params)
  own = {leaf.shape for leaf in jax.tree.leaves(params)}
  return sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(kept)
    if leaf.shape not in own
    and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  )


def _collective_bytes(
  config: Config, corpus: Corpus, params: Any, mesh: jax.sharding.AbstractMesh
) -> dict[str, int]:
  """What a device sends in a step, by kind; see collectives.bytes_sent.

  Parameters are gathered for the forward and again for the backward pass of
  each tower, and their gradients summed to where they are kept, then between
  the groups of devices that hold the same, all in the compute dtype.
  Wordpieces look their embeddings up where the columns of the table are.
  Queries go to all devices, their results come back, and then token ids do.
  """
  model, data = config.model, mesh.shape['data']
  wide = jnp.dtype(model.compute_dtype).itemsize
  share = (data - 1) / data
  embedder, encoder = (
    sum(leaf.size for leaf in jax.tree.leaves(params[part]))
    for part in ('document_embedder', 'encoder')
  )
  # Queries and documents; the joint texts.
  passes = (2 * embedder + encoder) * wide * config.micro_batches
  batch, retrieved = config.batch_size, config.num_candidates - 1
  wordpieces = (
    batch * config.query_length
    + batch * retrieved * corpus.block_length
    + batch
    * config.num_candidates
    * (config.query_length + corpus.block_length - 2)
  )
  found = retrieved + config.index.max_excluded
  tokens = batch * retrieved * corpus.block_length * 4
  queries = batch * model.retrieval_size * 4
  shards = mesh_lib.parameter_shards(data)
  split, copies = (shards - 1) / shards, data // shards
  gathered = 2 * passes * split + queries * share
  between = 2 * passes / shards * (copies - 1) / copies
  looked_up = 2 * wordpieces // data * model.hidden_size * 4
  summed = passes * split
  if copies > 1:
    # XLA sums the word table's gradient whole, in float32, once for each use.
    words = _WORD_TABLES * model.vocab_size * model.hidden_size
    summed -= words * wide * split
    between += 2 * words * 4 * (copies - 1) / copies
  return {
    'all-gather': round(gathered),
    'all-reduce': round(tokens * share + between),
    'reduce-scatter': round(summed),
    'all-to-all': round((looked_up + batch * found * 8) * share),
  }
