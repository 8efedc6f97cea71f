import dataclasses
import json
import zlib

import numpy as np
import pytest

from realm_jax.workdir import rows, versions

FIELDS = {
  'checkpoint_step': 7,
  'embedder_digest': 'ee',
  'corpus_fingerprint': 'cc',
  'tokenizer_digest': 'tt',
  'kind': 'exact',
  'recall': {'k': 8, 'value': 1.0},
  'build_seconds': 1.5,
}


def write(index, n=10):
  version = versions.next_version(index)
  writer = rows.VersionWriter(
    index, version, rows=n, dim=4, dtype='float32', chunk_rows=4
  )
  writer.write(0, np.full((n, 4), version, np.float32))
  writer.finish()
  return writer.commit(**FIELDS)


def test_manifest_says_what_was_written(tmp_path):
  made = write(tmp_path)
  read = versions.read_manifest(tmp_path, 1)
  assert read == made
  assert (read.rows, read.dim, read.dtype, read.kind) == (
    10,
    4,
    'float32',
    'exact',
  )
  assert len(read.checksums['rows']) == 3
  values = json.loads((tmp_path / '000001' / 'manifest.json').read_text())
  assert values['format_version'] == 2
  assert {f.name for f in dataclasses.fields(read)} < set(values)


def test_numbers_count_up_over_dead_writers(tmp_path):
  assert versions.next_version(tmp_path / 'none') == 1
  assert versions.list_versions(tmp_path / 'none') == []
  write(tmp_path)
  rows.VersionWriter(tmp_path, 2, rows=3, dim=4, dtype='float32')
  assert versions.next_version(tmp_path) == 3
  assert versions.list_versions(tmp_path) == [1]
  with pytest.raises(FileNotFoundError, match='no such index version'):
    versions.read_manifest(tmp_path, 2)
  with pytest.raises(FileNotFoundError, match='000002'):
    rows.read_rows(tmp_path, 2, 0, 1)
  assert versions.remove_uncommitted(tmp_path) == [2]
  assert not versions.directory(tmp_path, 2).exists()
  assert versions.list_versions(tmp_path) == [1]


def test_a_wrong_index_is_refused_with_both_values(tmp_path):
  manifest = write(tmp_path)
  right = {'corpus_fingerprint': 'cc', 'tokenizer_digest': 'tt'}
  versions.check(manifest, **right)
  versions.check(manifest, **right, embedder_digest='ee')
  for name in ('corpus_fingerprint', 'tokenizer_digest', 'embedder_digest'):
    with pytest.raises(ValueError, match=rf'{name} is \w\w, expected other'):
      versions.check(manifest, **{**right, name: 'other'})


def test_a_damaged_or_foreign_manifest_is_found(tmp_path):
  write(tmp_path)
  write(tmp_path)
  path = tmp_path / '000002' / 'manifest.json'
  text = path.read_text()
  later = json.loads(text) | {'format_version': 3}
  del later['crc32']
  later['crc32'] = zlib.crc32(json.dumps(later, sort_keys=True).encode())
  cases = {
    text[:40]: 'not a JSON file',
    text.replace('"checkpoint_step": 7', '"checkpoint_step": 8'): 'is damaged',
    text.replace('"format_version": 2', '"format_version": 3'): 'is damaged',
    json.dumps(later): 'format_version 3, this program reads 1 and 2',
    (tmp_path / '000001' / 'manifest.json').read_text(): (
      'is the manifest of version 1'
    ),
    '[]': 'expected a JSON object',
  }
  for damaged, message in cases.items():
    path.write_text(damaged)
    with pytest.raises(ValueError, match=rf'000002/manifest.json: .*{message}'):
      versions.read_manifest(tmp_path, 2)


def test_prune_keeps_the_newest_and_those_in_use(tmp_path):
  for _ in range(5):
    write(tmp_path)
  assert versions.prune(tmp_path, keep=2, in_use=lambda: {1, 5}) == [2, 3]
  assert versions.list_versions(tmp_path) == [1, 4, 5]
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    '000001',
    '000004',
    '000005',
  ]
  assert versions.prune(tmp_path, keep=9, in_use=set) == []


def test_prune_gives_back_what_a_reader_takes_meanwhile(tmp_path):
  for _ in range(3):
    write(tmp_path)
  asked = []

  def in_use():
    asked.append(versions.list_versions(tmp_path))
    return {1} if len(asked) > 1 else set()

  assert versions.prune(tmp_path, keep=1, in_use=in_use) == [2]
  assert asked[1] == [2, 3]  # version 1 was hidden when the reader came
  assert versions.list_versions(tmp_path) == [1, 3]
  assert versions.read_manifest(tmp_path, 1).version == 1


def test_a_version_is_set_aside_once(tmp_path):
  for _ in range(3):
    write(tmp_path)
  versions.set_aside(tmp_path, 1)
  versions.set_aside(tmp_path, 1)  # by another process
  assert versions.list_versions(tmp_path) == [2, 3]

  def in_use():
    versions.set_aside(tmp_path, 2)  # after it was listed
    return set()

  assert versions.prune(tmp_path, keep=1, in_use=in_use) == []
  versions.remove_uncommitted(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['000003']


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path):
  write(tmp_path)
  manifest = versions.directory(tmp_path, 1) / 'manifest.json'
  good = manifest.read_bytes()
  for place in range(len(good)):
    bad = bytearray(good)
    bad[place] ^= 1
    manifest.write_bytes(bad)
    try:
      found = versions.read_manifest(tmp_path, 1)
    except versions.Damaged:
      continue
    manifest.write_bytes(good)  # white space
    assert found == versions.read_manifest(tmp_path, 1)


def test_what_was_hidden_by_a_pruner_that_died_comes_back(tmp_path):
  for _ in range(2):
    write(tmp_path)

  def in_use():
    if versions.list_versions(tmp_path) == [2]:
      raise KeyboardInterrupt  # killed
    return set()

  with pytest.raises(KeyboardInterrupt):
    versions.prune(tmp_path, keep=1, in_use=in_use)
  assert versions.list_versions(tmp_path) == [2]
  versions.remove_uncommitted(tmp_path)
  assert versions.list_versions(tmp_path) == [1, 2]
