"""Candidates that the hosts find ahead of a step."""

import itertools

import jax
import numpy as np
import small_runs

from realm_jax.index.scann_host import HostIndex
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.train.host_search import HostSearch


class Searchers:
  """Finds rows 1 and 0 for every query."""

  def search(self, query_BE, k):
    count = len(query_BE)
    return np.zeros((count, k), np.float32), np.tile([1, 0], (count, 1))


def test_what_was_found_is_taken_up_again_whatever_came_since():
  config = small_runs.make_config('')
  mesh = mesh_lib.make_mesh(config.mesh)
  params = {
    'document_embedder': parts.init_part('embedder', config, jax.random.key(0))
  }
  rows_NE = np.arange(16, dtype=np.float32).reshape(2, 8)
  before, after = (
    HostIndex(None, Searchers(), rows) for rows in (rows_NE, -rows_NE)
  )

  def search(first):
    queries = np.full((8, 24), 5, np.int32)
    batches = ({'query_BL': queries, 'n': n} for n in itertools.count(first))
    return HostSearch(config, mesh, batches, 2, 3)

  with jax.set_mesh(mesh):
    one = search(0)
    one.take(params, before, 0)
    saved = one.pending()
    like = one.abstract(8)
    assert {name: (x.shape, x.dtype) for name, x in saved.items()} == {
      name: (x.shape, x.dtype) for name, x in like.items()
    }
    whole = one.take(params, after, 6)
    resumed = search(1)
    resumed.go_on(saved)
    again = resumed.take(params, after, 6)
  for batch, stale, since in (whole, again):
    assert (batch['n'], stale, since) == (1, 1, 0)
    np.testing.assert_array_equal(
      batch['found_row_BKE'], np.tile(rows_NE[::-1], (8, 1, 1))
    )
  one.close()
  resumed.close()
