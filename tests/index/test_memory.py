"""Whether an index fits, by arithmetic and by a limit that is made up."""

import jax
import pytest

from realm_jax import config as config_lib
from realm_jax.config import MeshConfig
from realm_jax.index import memory
from realm_jax.parallel import mesh as mesh_lib

ROWS, LENGTH = 1_000_000, 288


def _config(**index):
  return config_lib.from_dict({'index': {'rows_dtype': 'float32', **index}})


def _mesh(devices):
  return mesh_lib.make_mesh(MeshConfig(), jax.devices()[:devices])


def test_bytes_of_a_device():
  found = memory.device_bytes(_config(), ROWS, LENGTH, 8)
  assert found == {
    'version': ROWS // 8 * 128 * 4,
    'valid': ROWS // 8,
    'token_table': ROWS // 8 * 288 * 2,
  }
  small = memory.device_bytes(
    _config(kind='scann_host', token_table='host'), ROWS, LENGTH, 8
  )
  assert small == {'version': 0, 'valid': ROWS // 8, 'token_table': 0}
  tree = memory.device_bytes(_config(kind='scann'), ROWS, LENGTH, 8)
  assert 1.25 < tree['version'] / found['version'] < 2


def test_the_error_says_what_is_missing_and_what_would_fit():
  gib = 2**30
  config = _config()
  # Two versions of 488 MiB, and 549 MiB of token ids.
  memory.check(config, ROWS, LENGTH, _mesh(1), 2, free=2 * gib)
  with pytest.raises(ValueError) as error:
    memory.check(config, ROWS, LENGTH, _mesh(1), 2, free=gib)
  assert str(error.value) == (
    'index: 1000000 rows of 128 dimensions (exact, float32, 2 versions, '
    'token_table device) need 1.49 GiB of each of the 1 devices, 0.49 GiB '
    'more than the 1.00 GiB that are free; would fit: index.token_table host; '
    'index.rows_dtype bfloat16 and index.token_table host; index.kind '
    'scann_host; index.kind scann_host and index.token_table host; 2 devices'
  )
  codes = _config(kind='scann', token_table='host')
  with pytest.raises(ValueError) as error:
    memory.check(codes, ROWS, LENGTH, _mesh(1), 2, free=gib)
  assert 'would fit: index.kind exact; index.r' in str(error.value)
  assert str(error.value).endswith('; 2 devices')  # of 8 shards
  many = _config(kind='scann', token_table='host', rows_dtype='bfloat16')
  with pytest.raises(ValueError) as error:
    memory.check(many, ROWS, LENGTH, _mesh(8), 2, free=gib // 32)
  assert 'would fit: index.kind scann_host' in str(error.value)
  assert '; 32 devices and index.num_shards 32' in str(error.value)
  writing = config_lib.replace(config, refresh={'write_back': True})
  with pytest.raises(ValueError) as error:
    memory.check(writing, ROWS, LENGTH, _mesh(1), 2, free=gib)
  assert 'scann_host' not in str(error.value)  # which cannot be written into
  with pytest.raises(ValueError, match='no option helps'):
    memory.check(config, 5, LENGTH, _mesh(8), 1, free=0)


def test_what_the_runtime_says(monkeypatch):
  memory.check(_config(), 10**12, LENGTH, _mesh(1), 1)  # a CPU says nothing
  monkeypatch.setattr(memory, '_free', lambda device: 2**20)
  with pytest.raises(ValueError, match=r'0\.00 GiB that are free'):
    memory.check(_config(), ROWS, LENGTH, _mesh(1), 1)
