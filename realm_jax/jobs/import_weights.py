"""A Hugging Face directory to a workdir whose checkpoint 0 it is."""

import hashlib
import math
import os
import sys
import time
from typing import Any

import jax
import safetensors.numpy
from etils import epath

from realm_jax import config as config_lib
from realm_jax.config import Config
from realm_jax.corpus import records
from realm_jax.corpus.store import Corpus
from realm_jax.jobs.verify import verify
from realm_jax.model import hf_config, hf_files, hf_names, huggingface
from realm_jax.model.hf_files import Weights
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.text.wordpiece import WordPiece
from realm_jax.workdir import files, rows
from realm_jax.workdir.checkpoints import Checkpoints
from realm_jax.workdir.digest import embedder_digest
from realm_jax.workdir.run import Workdir

_RECORDS = 'block_records.npy'
TOLERANCE = 1e-4
_DEFAULTS = Config()


def import_weights(
  source: str,
  output: str,
  corpus: str | None = None,
  block_length: int = 288,
  expected: str | None = None,
) -> tuple[dict[str, Any], bool]:
  """Makes a workdir of a model in the Hugging Face layout.

  The workdir has a checkpoint of step 0 to start stages from, to embed, search
  and ask with; an open-QA model's block embeddings become its index version 1.
  `huggingface/` in it holds what `export` needs to give the model back: its
  config.json, the vocabulary, tensors that nothing here uses.

  Args:
    source: directory with config.json and the weights; `vocab.txt` and
      `block_records.npy`, the text of an index, are taken along.
    output: the workdir to make.
    corpus: a store of `realm prepare` whose rows are the blocks of the index,
      in place of block_records.npy.
    block_length: wordpieces of a row, where records make the corpus.
    expected: `.npz` with inputs and outputs of the reference; see `verify`.

  Returns:
    `kind`, `parameters`, what starts `fresh`, with `expected` also
    `max_abs_diff` (null: a NaN); and whether no difference is above 1e-4.

  Raises:
    ValueError: the directory is no model, or parts do not belong together;
      nothing is written.
  """
  with hf_files.open_weights(source) as weights:
    vocab = _vocab(source, weights, corpus)
    config = _config(weights, corpus)
    loaded = huggingface.load(weights, config)
    own = {'query_embedder', 'document_embedder'} <= set(loaded.params)
    config = config_lib.replace(config, model={'share_embedders': not own})
    _check_rows(weights, loaded.kind, config)
    told: dict[str, Any] = {
      'kind': loaded.kind,
      'parameters': loaded.parameters,
      'fresh': loaded.fresh,
    }
    if expected is not None:
      told['max_abs_diff'] = verify(loaded, config, expected)
    with files.new_directory(output, '--output', 'config.json'):
      _write(weights, loaded, config, output, vocab, block_length)
  if loaded.kind == 'open_qa' and not _has_text(output):
    print(
      f'import: {source} has no {_RECORDS} and no --corpus is given: the index '
      'can be searched, but nothing can be answered from it',
      file=sys.stderr,
    )
  differences = told.get('max_abs_diff', {})
  worst = max(differences.values(), default=0.0)
  for name, difference in differences.items():
    if not math.isfinite(difference):
      differences[name] = None  # JSON has no other
  return told, worst <= TOLERANCE


def _config(weights: Weights, corpus: str | None) -> Config:
  """The run's configuration, as far as the model decides it."""
  values = hf_config.config_values(weights)
  values['corpus'] = str(files.absolute(corpus)) if corpus else ''
  values['pooling'] = _pooling(weights)
  values['index'] = {'rows_dtype': 'float32'}
  # A question leaves the block half of what is read, and fits the model.
  room = min(
    values['model']['max_positions'],
    values.get('reader_length', _DEFAULTS.reader_length) // 2,
  )
  values['query_length'] = min(_DEFAULTS.query_length, room)
  try:
    return config_lib.from_dict(values)
  except ValueError as error:
    raise ValueError(f'{weights.path}: config.json: {error}') from error


def _pooling(weights: Weights) -> str:
  """How a BERT pools: as its sentence-embedding modules say, else by [CLS]."""
  file = epath.Path(weights.path) / '1_Pooling/config.json'
  if weights.config.get('model_type') != 'bert' or not file.exists():
    return 'cls'
  modes = {
    name
    for name, value in files.read_json(file).items()
    if name.startswith('pooling_mode_') and value is True
  }
  known = {'pooling_mode_mean_tokens': 'mean', 'pooling_mode_cls_token': 'cls'}
  if len(modes) != 1 or not modes <= set(known):
    raise ValueError(
      f'{file}: {", ".join(sorted(modes)) or "no pooling"}, must be one of '
      f'{", ".join(known)}'
    )
  return known[modes.pop()]


def _vocab(source: str, weights: Weights, corpus: str | None) -> bytes | None:
  """vocab.txt, of as many pieces as the model; the corpus's must be the same.

  None: there is none.
  """
  size = weights.config.get('vocab_size')
  path = epath.Path(source) / 'vocab.txt'
  found = path.read_bytes() if path.exists() else None
  if found is not None:
    tokenizer = WordPiece(found, str(path))
    if tokenizer.vocab_size != size:
      raise ValueError(
        f'{path}: has {tokenizer.vocab_size} wordpieces, but config.json: '
        f'vocab_size is {size}'
      )
  if corpus is None:
    return found
  store = Corpus.open(corpus).tokenizer
  if store.vocab_size != size or (
    found is not None and store.digest != tokenizer.digest
  ):
    raise ValueError(
      f'--corpus {corpus}: has another vocabulary ({store.vocab_size} '
      f'wordpieces, digest {store.digest}) than {source}'
    )
  return epath.Path(store.path).read_bytes()


def _check_rows(weights: Weights, kind: str, config: Config) -> None:
  """Block embeddings belong to the model and to the corpus."""
  if kind != 'open_qa':
    return
  if hf_names.BLOCKS not in weights.entries:
    raise ValueError(f'{weights.path}: tensors missing: {hf_names.BLOCKS}')
  shape = weights.entries[hf_names.BLOCKS].shape
  if len(shape) != 2 or shape[1] != config.model.retrieval_size:
    raise ValueError(
      f'{weights.path}: {hf_names.BLOCKS} {list(shape)}, must be '
      f'[N, {config.model.retrieval_size}]'
    )
  if config.corpus:
    blocks = Corpus.open(config.corpus).num_blocks
    if blocks != shape[0]:
      raise ValueError(
        f'--corpus {config.corpus}: has {blocks} blocks, but '
        f'{hf_names.BLOCKS} has {shape[0]} rows'
      )


def _write(
  weights: Weights,
  loaded: huggingface.Loaded,
  config: Config,
  output: str,
  vocab: bytes | None,
  block_length: int,
) -> None:
  kept = epath.Path(output) / 'huggingface'
  kept.mkdir()
  files.write_json(kept / hf_files.CONFIG, weights.config)
  if loaded.aside:
    safetensors.numpy.save_file(loaded.aside, str(kept / 'aside.safetensors'))
  if vocab is not None:
    (kept / 'vocab.txt').write_bytes(vocab)
  digest = None
  if loaded.kind == 'open_qa':
    config = _with_records(weights, config, output, vocab, block_length)
    digest = _write_index(weights, config, output, vocab)
  elif 'document_embedder' in loaded.params:
    digest = embedder_digest(loaded.params['document_embedder'], config)
  mesh = mesh_lib.make_mesh(config.mesh)
  params = jax.device_put(
    loaded.params, mesh_lib.tree_shardings(loaded.params, mesh)
  )
  saved = Checkpoints(output, keep=1)
  saved.save(
    0,
    {'params': params},
    {
      'stage': 'import',
      'embedder_digest': digest,
      'index_version': 1 if loaded.kind == 'open_qa' else None,
      'imported': {
        'kind': loaded.kind,
        'backbone': loaded.backbone,
        'fresh': loaded.fresh,
      },
    },
  )
  saved.close()
  if config.corpus:
    corpus = Corpus.open(config.corpus)
    files.write_json(
      epath.Path(output) / 'corpus.json',
      {
        'path': config.corpus,
        'fingerprint': corpus.fingerprint,
        'text_fingerprint': corpus.fingerprint,
        'tokenizer_digest': corpus.tokenizer_digest,
      },
    )
  Workdir.create(output, 'import', config)


def _with_records(
  weights: Weights,
  config: Config,
  output: str,
  vocab: bytes | None,
  block_length: int,
) -> Config:
  """The config with a corpus of block_records.npy, if there are any."""
  path = os.path.join(weights.path, _RECORDS)
  if config.corpus or not os.path.exists(path):
    return config
  if vocab is None:
    raise ValueError(
      f'{weights.path}: has {_RECORDS}, but no vocab.txt to encode it with'
    )
  texts = records.read_records(path)
  rows = weights.entries[hf_names.BLOCKS].shape[0]
  if len(texts) != rows:
    raise ValueError(
      f'{path}: has {len(texts)} texts, but {hf_names.BLOCKS} has {rows} rows'
    )
  store = files.absolute(output) / 'corpus'
  store.mkdir()
  records.store_records(texts, path, str(store), vocab, block_length)
  return config_lib.replace(config, corpus=str(store))


def _write_index(
  weights: Weights, config: Config, output: str, vocab: bytes | None
) -> str:
  """Streams the block embeddings into index version 1; gives their digest.

  Nothing says which document embedder made them. Their own checksums stand for
  it: an index that `refresh` makes can never be taken for this one.
  """
  began = time.monotonic()
  index = epath.Path(output) / 'index'
  count, dim = weights.entries[hf_names.BLOCKS].shape
  corpus = Corpus.open(config.corpus) if config.corpus else None
  tokenizer = '' if vocab is None else WordPiece(vocab, weights.path).digest
  writer = rows.VersionWriter(
    index, 1, rows=count, dim=dim, dtype=config.index.rows_dtype
  )
  digest = hashlib.sha256()
  start = 0
  for part_nE in weights.rows(hf_names.BLOCKS, rows.CHUNK_ROWS):
    digest.update(part_nE)
    writer.write(start, part_nE)
    start += len(part_nE)
  writer.finish()
  writer.commit(
    checkpoint_step=0,
    embedder_digest=f'block_emb:{digest.hexdigest()}',
    corpus_fingerprint=corpus.fingerprint if corpus else '',
    tokenizer_digest=tokenizer,
    kind=config.index.kind,
    recall=None,
    build_seconds=round(time.monotonic() - began, 3),
  )
  return f'block_emb:{digest.hexdigest()}'


def _has_text(output: str) -> bool:
  return bool(Workdir.open(output).config.corpus)
