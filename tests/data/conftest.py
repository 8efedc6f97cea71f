"""Small real corpora."""

import pytest
from data_checks import write_documents

from realm_jax.corpus.prepare import prepare
from realm_jax.corpus.store import Corpus


@pytest.fixture(scope='session')
def paths(tmp_path_factory):
  """Two stores, Z and X, with one vocabulary."""
  folder = tmp_path_factory.mktemp('stores')
  write_documents(folder / 'z.jsonl', 120, seed=0)
  write_documents(folder / 'x.jsonl', 60, seed=1)
  prepare(
    [str(folder / 'z.jsonl')],
    format='jsonl',
    train_vocab=220,
    output=str(folder / 'z'),
    block_length=64,
  )
  prepare(
    [str(folder / 'x.jsonl')],
    format='jsonl',
    vocab=str(folder / 'z' / 'vocab.txt'),
    output=str(folder / 'x'),
    block_length=64,
  )
  return folder


@pytest.fixture(scope='session')
def corpus(paths):
  return Corpus.open(str(paths / 'z'))


@pytest.fixture(scope='session')
def text_corpus(paths):
  return Corpus.open(str(paths / 'x'))
