"""Which rows a step writes into the index, and what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from realm_jax.config import MeshConfig
from realm_jax.corpus.store import Corpus
from realm_jax.index import write
from realm_jax.index.embed import embed_tokens
from realm_jax.index.search import Index
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train import renew

COUNT = 50


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return small_runs.make_corpus(tmp_path_factory.mktemp('corpus'), COUNT)


def renewed(store, config, mesh, step, retrieved):
  """Rows before and after, and what each of them is afresh."""
  corpus = Corpus.open(store)
  token_NL = corpus.tokens(slice(0, COUNT))
  params = {
    'document_embedder': parts.init_part('embedder', config, jax.random.key(1))
  }
  before_NE = np.random.default_rng(0).normal(size=(COUNT, 8))

  def put(values):
    return mesh_lib.put_rows(
      lambda a, b: values[a:b], COUNT, values.shape[1:], values.dtype, mesh
    )

  index = Index(
    put(before_NE.astype(np.float32)), put(np.ones(COUNT, bool)), put(token_NL)
  )
  index = write.writable(index, mesh, 0, config.refresh.priority_rows > 0)
  sep_id = corpus.tokenizer.sep_id
  with jax.set_mesh(mesh):
    after = jax.jit(
      lambda index, retrieved: renew.renew(
        index, params, jnp.int32(step), retrieved, config, COUNT, sep_id
      )
    )(index, mesh_lib.put_whole(retrieved, mesh))
  fresh_NE = embed_tokens(
    params['document_embedder'], token_NL.astype(np.int32), config, sep_id
  )
  rows_NE = np.asarray(after.rows_NE)[:COUNT]
  return before_NE.astype(np.float32), rows_NE, np.asarray(fresh_NE)


def check(before_NE, after_NE, fresh_NE, written, level=True):
  """Some rows are fresh; level: with the mean and spread that they had."""
  written_N = np.isin(np.arange(COUNT), written)
  np.testing.assert_array_equal(after_NE[~written_N], before_NE[~written_N])
  want_RE = fresh_NE[written_N]
  if level:
    old_RE = before_NE[written_N]
    want_RE = want_RE - want_RE.mean(0)
    scale = np.linalg.norm(old_RE - old_RE.mean(0)) / np.linalg.norm(want_RE)
    want_RE = old_RE.mean(0) + want_RE * scale
  # What is not trained embeds all texts nearly alike: to scale that up to the
  # spread of the rows before magnifies rounding.
  atol = 2e-3 if level else 1e-5
  np.testing.assert_allclose(after_NE[written_N], want_RE, atol=atol)


@pytest.mark.parametrize('shape', [(1, 1), (4, 2)])
def test_rolling_comes_to_every_row_in_turn(store, shape):
  keys = {'where': 'rolling', 'rows_per_step': 16}
  config = small_runs.make_config(store, refresh=keys)
  mesh = mesh_lib.make_mesh(
    MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]]
  )
  assert renew.rounds(COUNT, 16) == 4
  for step, rows in ((1, range(16, 32)), (3, range(48, 50)), (4, range(16))):
    check(*renewed(store, config, mesh, step, {}), rows, level=False)


@pytest.mark.parametrize('shape', [(1, 1), (4, 2)])
def test_write_back_renews_what_was_retrieved(store, shape):
  keys = {'write_back': True}
  config = small_runs.make_config(store, refresh=keys)
  mesh = mesh_lib.make_mesh(
    MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]]
  )
  row_BK = np.arange(8, dtype=np.int32).reshape(4, 2) * 6
  row_BK[1] = [0, -1]
  written = [0, 6, 24, 30, 36, 42]
  check(*renewed(store, config, mesh, 0, {'row_BK': row_BK}), written)
  # What the loss embedded is not embedded again.
  fresh_BKE = np.random.default_rng(3).normal(7, size=(4, 2, 8))
  fresh_BKE = fresh_BKE.astype(np.float32)
  before_NE, after_NE, _ = renewed(
    store, config, mesh, 0, {'row_BK': row_BK, 'fresh_BKE': fresh_BKE}
  )
  fresh_NE = np.zeros((COUNT, 8))
  pairs = zip(row_BK.flat, fresh_BKE.reshape(8, 8), strict=True)
  for row, fresh in reversed(list(pairs)):
    fresh_NE[row] = fresh  # the first of a row that comes twice
  check(before_NE, after_NE, fresh_NE, written)


@pytest.mark.parametrize('shape', [(1, 1), (4, 2)])
def test_priority_renews_what_was_retrieved_most(store, shape):
  config = small_runs.make_config(store, refresh={'priority_rows': 4})
  mesh = mesh_lib.make_mesh(
    MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]]
  )
  row_BK = np.int32([[3, 9], [9, 40], [40, 9], [-1, 17]])
  found = renewed(store, config, mesh, 5, {'row_BK': row_BK})
  check(*found, [3, 9, 17, 40])
  row_BK = np.int32([[3, 9, 21], [9, 40, 3], [40, 9, 30], [-1, 17, 30]])
  found = renewed(store, config, mesh, 5, {'row_BK': row_BK})
  check(*found, [3, 9, 30, 40])
