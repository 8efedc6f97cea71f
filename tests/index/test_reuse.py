"""A corpus that changes: what is embedded, and what is found."""

import shutil

import numpy as np
import pytest
import small_runs

from realm_jax import config as config_lib
from realm_jax.corpus import change
from realm_jax.corpus.store import Corpus
from realm_jax.index import build
from realm_jax.index.refresh import refresh
from realm_jax.workdir import rows, versions
from realm_jax.workdir.run import Workdir


@pytest.fixture
def grown(tmp_path, make_run, config, store, monkeypatch):
  """A run with version 1, whose corpus has grown since.

  Gives its workdir, rows before and after, and which rows were embedded.
  """
  shutil.copytree(store, tmp_path / 'z')
  config = config_lib.replace(config, corpus=str(tmp_path / 'z'))
  workdir = make_run(config)
  embedded = []
  embed_corpus = build.embed_corpus

  def watch(*arguments):
    embedded.append(arguments[5])
    yield from embed_corpus(*arguments)

  monkeypatch.setattr(build, 'embed_corpus', watch)
  assert refresh(str(workdir.path), follow=False) == 0
  before = Corpus.open(tmp_path / 'z').num_blocks
  more = small_runs.write_lines(
    tmp_path / 'more.jsonl', map(small_runs.document, (77, 78))
  )
  change.add(str(tmp_path / 'z'), [more], 'jsonl')
  after = Corpus.open(tmp_path / 'z').num_blocks
  return workdir, before, after, embedded


def read(workdir, version, count):
  return rows.read_rows(workdir.index, version, 0, count)


def test_only_new_documents_are_embedded(tmp_path, grown):
  workdir, before, after, embedded = grown
  assert refresh(str(workdir.path), follow=False) == 0
  assert embedded == [(0, before), (before, after)]
  copied_NE = read(workdir, 2, after)
  np.testing.assert_array_equal(copied_NE[:before], read(workdir, 1, before))
  recalls = [versions.read_manifest(workdir.index, v).recall for v in (1, 2)]
  assert recalls[1]['recall@8'] <= recalls[0]['recall@8']
  # As if all had been embedded.
  shutil.rmtree(workdir.index)
  assert refresh(str(workdir.path), follow=False) == 0
  assert embedded[2] == (0, after)
  np.testing.assert_allclose(
    read(workdir, 1, after).astype(np.float32),
    copied_NE.astype(np.float32),
    atol=0.02,
  )


def test_nothing_is_embedded_for_a_removal(tmp_path, grown):
  workdir, _, after, embedded = grown
  assert refresh(str(workdir.path), follow=False) == 0
  change.remove(str(tmp_path / 'z'), ['d3'])
  assert refresh(str(workdir.path), follow=False) == 0
  assert embedded[2:] == [(after, after)]
  newest = Corpus.open(tmp_path / 'z').fingerprint
  assert versions.read_manifest(workdir.index, 3).corpus_fingerprint == newest
  np.testing.assert_array_equal(
    read(workdir, 3, after), read(workdir, 2, after)
  )


def test_rows_of_another_embedder_or_dtype_are_not_copied(grown, make_run):
  workdir, _, after, embedded = grown
  config = config_lib.replace(workdir.config, index={'rows_dtype': 'float32'})
  Workdir.create(workdir.path, 'pretrain', config)
  assert refresh(str(workdir.path), follow=False) == 0
  make_run(config, steps=(2,))
  assert refresh(str(workdir.path), follow=False) == 0
  assert embedded[1:] == [(0, after), (0, after)]


def test_a_damaged_version_is_embedded_anew(grown, capsys):
  workdir, _, after, embedded = grown
  chunk = versions.directory(workdir.index, 1) / 'rows' / 'c' / '0' / '0'
  data = bytearray(chunk.read_bytes())
  data[7] ^= 1
  chunk.write_bytes(data)
  assert refresh(str(workdir.path), follow=False) == 0
  assert embedded[1:] == [(0, after)]
  said = capsys.readouterr().err
  assert f'refresh: embeds rows from 0 on: {chunk}: is damaged' in said
