"""A run of one checkpoint whose embedder was never trained."""

import jax
import numpy as np
import pytest
import small_runs

from realm_jax.corpus.store import Corpus
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.workdir import files
from realm_jax.workdir.checkpoints import Checkpoints
from realm_jax.workdir.digest import embedder_digest
from realm_jax.workdir.run import Workdir


@pytest.fixture(scope='session')
def store(tmp_path_factory):
  return small_runs.make_corpus(tmp_path_factory.mktemp('index_corpus'))


@pytest.fixture(scope='session')
def corpus(store):
  return Corpus.open(store)


@pytest.fixture
def config(store):
  # Untrained, the mean of a text tells more of it than [CLS].
  return small_runs.make_config(store, pooling='mean')


@pytest.fixture
def mesh(config):
  return mesh_lib.make_mesh(config.mesh)


@pytest.fixture(scope='session')
def embedder():
  """embedder(config, seed=0): parameters that were never trained."""

  def make(config, seed=0):
    params = parts.init_part('embedder', config, jax.random.key(seed))
    # A fresh projection hardly tells texts apart.
    return jax.tree.map(
      lambda leaf: leaf * 8 if leaf.ndim > 1 else leaf, params
    )

  return make


@pytest.fixture
def make_run(tmp_path, corpus, embedder):
  """make_run(config, steps=(1,)): a pretrain workdir with checkpoints."""

  def make(config, steps=(1,), same=False):
    workdir = Workdir.create(tmp_path / 'w', 'pretrain', config)
    files.write_json(
      workdir.path / 'corpus.json', {'fingerprint': corpus.fingerprint}
    )
    saved = Checkpoints(workdir.path, 9)
    for step in steps:
      params = embedder(config, 0 if same else step)
      one = np.int32(1)
      saved.save(
        step,
        {
          'params': {'document_embedder': params},
          'opt_state': {'n': one},
          'step': {'step': one},
        },
        {
          'stage': 'pretrain',
          'embedder_digest': embedder_digest(params, config),
        },
      )
    saved.close()
    return workdir

  return make
