"""Where a stage's parameters come from: an earlier stage, BERT, or nothing."""

from typing import Any

import jax
from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.index.refresh import restore_part
from realm_jax.model import hf_files, huggingface, parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.text.wordpiece import WordPiece
from realm_jax.train.optimizer import RETRIEVER
from realm_jax.workdir import checkpoints, files
from realm_jax.workdir.run import Workdir, split_init

# Parts a stage's state has. What a stage has but does not train is carried
# along for the stages that follow; mlm carries embedders only where an earlier
# stage made them.
STATE_PARTS = {
  'mlm': ('encoder',),
  'ict': ('document_embedder', 'query_embedder', 'encoder'),
  'pretrain': ('document_embedder', 'query_embedder', 'encoder'),
  'finetune': ('document_embedder', 'query_embedder', 'reader'),
}


def initial_params(
  stage: str, config: Config, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """The parameters at step 0, split over the mesh.

  A part that `init_from` has is taken. One that it lacks starts fresh, but its
  BERT is that of a related part where there is one: an embedder's that of the
  encoder (the paper's warm start from BERT), a reader's that of the encoder.
  What starts fresh is said on standard error.

  Args:
    stage: mlm, ict, pretrain or finetune.
    config: `init_from` is `WORKDIR[:STEP]`, a Hugging Face directory, or ''.
    mesh: of the run.

  Returns:
    part to parameters.

  Raises:
    ValueError: init_from is neither, or has another model.
  """
  wanted = set(STATE_PARTS[stage])
  if stage == 'finetune' and config.closed_book:
    wanted = {'encoder'}
  carried = set(wanted)
  if stage == 'mlm' and _is_workdir(split_init(config.init_from)[0]):
    carried |= set(RETRIEVER)
  have = _read(config, mesh, carried) if config.init_from else {}
  encoder = have.get('encoder')
  keys = jax.random.split(jax.random.key(config.seed), 3)
  params = {part: tree for part, tree in have.items() if part in carried}
  if 'encoder' in wanted and 'encoder' not in params and stage != 'ict':
    donor = have.get('document_embedder')
    params['encoder'] = _fresh('encoder', config, keys[0], mesh, donor)
  # An imported open-QA model has the rows of its blocks, not what made them.
  rows_only = stage == 'finetune' and set(RETRIEVER) & set(have) == {
    'query_embedder'
  }
  if 'document_embedder' in wanted and not rows_only:
    if 'document_embedder' not in params:
      params['document_embedder'] = _fresh(
        'embedder', config, keys[1], mesh, encoder
      )
    unshared = stage == 'finetune' or not config.model.share_embedders
    if unshared and 'query_embedder' not in params:
      # A copy: the two are donated to the step as separate buffers.
      params['query_embedder'] = jax.tree.map(
        lambda leaf: leaf.copy(), params['document_embedder']
      )
    if not unshared:
      params.pop('query_embedder', None)
  if 'reader' in wanted and 'reader' not in params:
    params['reader'] = _fresh('reader', config, keys[2], mesh, encoder)
  return params


def check_vocabulary(config: Config, corpus: Corpus) -> None:
  """Compares the vocabulary of `init_from`, if it says which, and the corpus's.

  Raises:
    ValueError: they differ; names both.
  """
  if not config.init_from:
    return
  path = epath.Path(split_init(config.init_from)[0])
  there = ''
  if (path / 'corpus.json').exists():
    there = files.read_json(path / 'corpus.json').get('tokenizer_digest', '')
  for vocabulary in (path / 'vocab.txt', path / 'huggingface' / 'vocab.txt'):
    if not there and vocabulary.exists():
      there = WordPiece.from_file(vocabulary).digest
  if there and there != corpus.tokenizer_digest:
    raise ValueError(
      f'init_from {path}: has tokenizer {there[:12]}, but the corpus '
      f'{corpus.path} {corpus.tokenizer_digest[:12]}; prepare it with that '
      'vocab.txt'
    )


def _read(
  config: Config, mesh: jax.sharding.Mesh, wanted: set[str]
) -> dict[str, Any]:
  path, step = split_init(config.init_from)
  if _is_workdir(path):
    workdir = Workdir.open(path)
    _check_model(workdir, config)
    steps = checkpoints.steps(path)
    if not steps:
      raise ValueError(f'init_from: {path} has no checkpoint yet')
    step = steps[-1] if step is None else step
    shapes = checkpoints.params_shapes(path, step)
    # The encoder is wanted also where only its BERT will be.
    return {
      part: restore_part(workdir, step, part, mesh)
      for part in shapes
      if part in wanted | {'encoder'}
    }
  if (epath.Path(path) / hf_files.CONFIG).exists():
    with hf_files.open_weights(path) as weights:
      loaded = huggingface.load(weights, config)
    if loaded.kind == 'open_qa':
      raise ValueError(
        f'init_from: {path} has an index; make a workdir of it (realm import) '
        'and start from that'
      )
    if loaded.fresh:
      processes.say(
        f'init_from {path}: starts fresh: {", ".join(loaded.fresh)}'
      )
    return {
      part: jax.device_put(tree, mesh_lib.tree_shardings(tree, mesh))
      for part, tree in loaded.params.items()
    }
  raise ValueError(
    f'init_from: {path} is neither a workdir nor a Hugging Face directory '
    f'({hf_files.CONFIG}, {hf_files.SAFETENSORS})'
  )


def _is_workdir(path: str) -> bool:
  return bool(path) and (epath.Path(path) / 'checkpoints').exists()


def _check_model(workdir: Workdir, config: Config) -> None:
  free = (
    *('dropout', 'compute_dtype', 'remat', 'attention'),
    *('share_embedders', 'initializer_range'),
  )
  there, here = workdir.config.to_dict(), config.to_dict()
  for name, value in here['model'].items():
    if name not in free and there['model'][name] != value:
      raise ValueError(
        f'init_from {workdir.path}: model.{name} is {there["model"][name]!r} '
        f'there, {value!r} here'
      )
  if there['pooling'] != here['pooling'] and workdir.stage != 'mlm':
    raise ValueError(
      f'init_from {workdir.path}: pooling is {there["pooling"]!r} there, '
      f'{here["pooling"]!r} here'
    )


def _fresh(
  part: parts.Part,
  config: Config,
  key: jax.Array,
  mesh: jax.sharding.Mesh,
  donor: dict[str, Any] | None,
) -> dict[str, Any]:
  """Fresh parameters, made where they will live, around a donor's BERT."""

  def create() -> dict[str, Any]:
    return parts.init_part(part, config, key)

  shardings = mesh_lib.tree_shardings(jax.eval_shape(create), mesh)
  params = jax.jit(create, out_shardings=shardings)()
  if donor is None:
    processes.say(f'{part}: starts from random parameters')
    return params
  processes.say(f'{part}: starts from an earlier BERT, its head fresh')
  return {**params, 'bert': jax.tree.map(lambda x: x.copy(), donor['bert'])}
