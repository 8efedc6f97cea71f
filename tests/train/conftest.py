"""What the runs of a module share."""

import pytest
import small_runs


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """A directory for what processes compile."""
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def compiled_once(cache):
  """What this process compiles is kept there too."""
  with small_runs.compile_once(cache):
    yield


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return small_runs.make_corpus(tmp_path_factory.mktemp('corpus'))
