"""Which parameters a stage takes from the stage before it."""

import json
import pathlib

import jax
import numpy as np
import pytest
import small_runs

from realm_jax import config as config_lib
from realm_jax.corpus.store import Corpus
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train.initialize import check_vocabulary, initial_params
from realm_jax.workdir.checkpoints import Checkpoints
from realm_jax.workdir.digest import embedder_digest, tree_digest
from realm_jax.workdir.run import Workdir

SIZES = {
  'vocab_size': 40,
  'hidden_size': 8,
  'num_layers': 2,
  'num_heads': 2,
  'mlp_size': 16,
  'max_positions': 16,
  'retrieval_size': 8,
  'span_hidden_size': 8,
}


def make_config(**keys):
  return config_lib.from_dict({'model': SIZES, **keys})


@pytest.fixture
def mesh():
  return mesh_lib.make_mesh(make_config().mesh)


def save(path, stage, params):
  """A run of one checkpoint."""
  workdir = Workdir.create(path, stage, make_config(corpus='none'))
  saved = Checkpoints(workdir.path, 1, keep_best=False)
  one = np.int32(1)  # what is restored here is params alone
  state = {'params': params, 'opt_state': {'n': one}, 'step': {'step': one}}
  meta = {'stage': stage}
  if 'document_embedder' in params:
    document = params['document_embedder']
    meta['embedder_digest'] = embedder_digest(document, workdir.config)
  saved.save(1, state, meta)
  saved.close()
  return str(path)


def same(a, b):
  return tree_digest(a) == tree_digest(b)


def test_mlm_carries_the_embedder_of_the_stage_before(tmp_path, mesh):
  ict = initial_params('ict', make_config(), mesh)
  path = save(tmp_path / 'ict', 'ict', ict)
  params = initial_params('mlm', make_config(init_from=path, seed=1), mesh)
  assert set(params) == {'document_embedder', 'encoder'}
  assert same(params['document_embedder'], ict['document_embedder'])
  # ICT from nothing has no encoder: its BERT is that of the embedder.
  assert same(params['encoder']['bert'], ict['document_embedder']['bert'])


def test_mlm_from_nothing_has_the_encoder_alone(mesh):
  assert set(initial_params('mlm', make_config(), mesh)) == {'encoder'}


def test_ict_after_mlm_starts_from_the_encoder(tmp_path, mesh):
  mlm = initial_params('mlm', make_config(), mesh)
  path = save(tmp_path / 'mlm', 'mlm', mlm)
  params = initial_params('ict', make_config(init_from=path, seed=1), mesh)
  assert set(params) == {'document_embedder', 'encoder'}
  assert same(params['document_embedder']['bert'], mlm['encoder']['bert'])
  # Two buffers: the step donates both.
  ours = jax.tree.leaves(params['document_embedder']['bert'])[0]
  assert ours is not jax.tree.leaves(params['encoder']['bert'])[0]


def test_weights_of_another_vocabulary_are_refused(tmp_path):
  corpus = Corpus.open(small_runs.make_corpus(tmp_path))
  own = pathlib.Path(corpus.path, 'vocab.txt').read_text()
  bert, run = tmp_path / 'bert', tmp_path / 'run'
  for folder in (bert, run):
    folder.mkdir()
    config = make_config(init_from=str(folder))
    check_vocabulary(config, corpus)  # it does not say which
    if folder is bert:
      (bert / 'vocab.txt').write_text(own)
    else:
      digest = {'tokenizer_digest': corpus.tokenizer_digest}
      (run / 'corpus.json').write_text(json.dumps(digest))
    check_vocabulary(config, corpus)
  (bert / 'vocab.txt').write_text(own + 'more\n')
  (run / 'corpus.json').write_text('{"tokenizer_digest": "feed"}')
  for folder, says in ((bert, '[0-9a-f]{12}'), (run, 'feed')):
    with pytest.raises(ValueError, match=f'has tokenizer {says}, but the corp'):
      check_vocabulary(make_config(init_from=str(folder)), corpus)
