"""Blocks of removed documents are not visited."""

import shutil

import numpy as np

from realm_jax import config as config_lib
from realm_jax.corpus import change
from realm_jax.corpus.store import Corpus
from realm_jax.data.ict import IctSource
from realm_jax.data.masked import MaskedSentenceSource
from realm_jax.data.mlm import MlmSource


def test_removed_blocks_are_skipped_and_counted(paths, tmp_path):
  path = str(tmp_path / 'z')
  shutil.copytree(paths / 'z', path)
  change.remove(path, [f'd{number}' for number in range(0, 120, 2)])
  corpus = Corpus.open(path)
  alive_N = np.asarray(corpus.alive(0, corpus.num_blocks))
  dead = int((~alive_N).sum())
  assert 0 < dead < corpus.num_blocks
  config = config_lib.replace(config_lib.Config(), batch_size=200)
  masked = MaskedSentenceSource(corpus, corpus, config)
  assert alive_N[masked[0]['exclude_BX'][:, 0]].all()
  ict = IctSource(corpus, 200, 64, 0.0, seed=0)
  tokens = corpus.tokens(slice(0, corpus.num_blocks))
  living = {row_L.tobytes() for row_L in tokens[alive_N].astype(np.int32)}
  assert all(row_L.tobytes() in living for row_L in ict[0]['block_BL'])
  for source in (masked, ict, MlmSource(corpus, config)):
    assert source.counts['removed'] == dead
