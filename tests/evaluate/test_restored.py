"""What a reader of an index sees of its corpus and its files."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import small_runs

from realm_jax.corpus import change
from realm_jax.corpus.store import Corpus
from realm_jax.evaluate import restored
from realm_jax.evaluate.ask import search
from realm_jax.index import approximate
from realm_jax.index.refresh import refresh, restore_part
from realm_jax.jobs import embed
from realm_jax.train.run import train
from realm_jax.workdir import leases, versions
from realm_jax.workdir.run import Workdir


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run with an index of its newest checkpoint."""
  folder = tmp_path_factory.mktemp('restored')
  with small_runs.compile_once(folder / 'cache'):
    corpus = small_runs.make_corpus(folder)
    config = small_runs.make_config(corpus, num_steps=1, pooling='mean')
    assert train('ict', config, str(folder / 'w')) == 0
    assert refresh(str(folder / 'w'), follow=False) == 0
    yield folder / 'w'


def test_a_version_that_is_read_is_leased(workdir, monkeypatch):
  seen = []
  load = restored.load.load_index

  def watch(*arguments):
    seen.append(leases.leased(workdir))
    return load(*arguments)

  monkeypatch.setattr(restored.load, 'load_index', watch)
  assert len(search(str(workdir), 'Arno of Lund', 3)) == 3
  assert seen == [{1}]
  assert leases.living(workdir) == []


def test_removed_documents_are_not_found_before_a_new_version(workdir):
  corpus = workdir.parent / 'z'
  count = Corpus.open(corpus).num_blocks
  found = search(str(workdir), 'Arno of Lund', count)
  gone = [passage['document'] for passage in found[:2]]
  change.remove(str(corpus), sorted(set(gone)))
  assert versions.list_versions(workdir / 'index') == [1]
  again = search(str(workdir), 'Arno of Lund', count)
  assert not {passage['document'] for passage in again} & set(gone)
  assert [x['block'] for x in again] == [
    x['block'] for x in found if x['document'] not in gone
  ]
  # Also by a new version; and what was trained on it goes on with its own.
  assert refresh(str(workdir), follow=False) == 0
  assert search(str(workdir), 'Arno of Lund', count) == again


def test_embeddings_that_are_not_finite_are_refused(
  workdir, monkeypatch, tmp_path
):
  def damaged(*arguments):
    return jax.tree.map(lambda x: x * jnp.nan, restore_part(*arguments))

  monkeypatch.setattr(restored, 'restore_part', damaged)
  with pytest.raises(ValueError, match=r'1 of 1 questions .* not finite'):
    search(str(workdir), 'Arno of Lund', 3)
  texts = small_runs.write_lines(tmp_path / 'x.jsonl', [{'text': 'a house'}])
  monkeypatch.setattr(embed, 'restore_part', damaged)
  output = tmp_path / 'v.npy'
  with pytest.raises(ValueError, match=r'text 1 of .* is not finite'):
    embed.embed(str(workdir), texts, str(output), 'query')
  assert not output.exists()


def test_rows_of_other_sizes_are_refused(workdir):
  run = Workdir.open(str(workdir))
  newest = versions.list_versions(run.index)[-1]
  manifest = versions.read_manifest(run.index, newest)
  approximate.check(manifest, run.config)
  other = dataclasses.replace(manifest, dim=9)
  with pytest.raises(
    ValueError, match=r'rows have 9 dimensions, model\.retrieval_size is 8'
  ):
    approximate.check(other, run.config)


def test_a_damaged_file_is_named(workdir):
  newest = versions.list_versions(workdir / 'index')[-1]
  directory = versions.directory(workdir / 'index', newest)
  chunk = directory / 'rows' / 'c' / '0' / '0'
  good = chunk.read_bytes()
  for damaged in (good[:-9], bytes([good[0] ^ 4]) + good[1:], b''):
    chunk.write_bytes(damaged)
    with pytest.raises(ValueError) as raised:
      search(str(workdir), 'Arno of Lund', 1)
    assert str(chunk) in str(raised.value)
  chunk.unlink()
  with pytest.raises(ValueError) as raised:
    search(str(workdir), 'Arno of Lund', 1)
  assert str(chunk) in str(raised.value)
