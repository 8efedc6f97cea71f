"""Documents in and out of a store, while it is read and by killed writers."""

import json
import multiprocessing
import pathlib
import shutil
import threading

import numpy as np
import pytest

from realm_jax.corpus import arrays, writer
from realm_jax.corpus.change import add, remove
from realm_jax.corpus.prepare import prepare
from realm_jax.corpus.store import Corpus
from realm_jax.workdir import files


@pytest.fixture
def store(tmp_path, vocab, write, story) -> str:
  """Six documents, d0 to d5, of several blocks each."""
  path = str(tmp_path / 'c')
  documents = [story(n) for n in range(6)]
  prepare([write(documents)], path, vocab=vocab, block_length=64)
  return path


def contents(corpus: Corpus) -> dict:
  """All that a reader can see."""
  stop = corpus.num_blocks
  return {
    'tokens': corpus.tokens(slice(0, stop)).tolist(),
    'texts': corpus.texts(0, stop),
    'ids': [corpus.document_id(row) for row in range(stop)],
    'titles': [corpus.title(row) for row in range(stop)],
    'alive': corpus.alive(0, stop).tolist(),
    'sentences': {k: v.tolist() for k, v in vars(corpus.sentences).items()},
    'manifest': corpus.manifest,
    'fingerprint': corpus.fingerprint,
    'parent': corpus.parent,
  }


def test_generations(store, write, story):
  first = Corpus.open(store)
  before = contents(first)
  added = add(store, [write([story(7), story(8)], 'more.jsonl')])
  second = Corpus.open(store)
  assert added['parent'] == first.fingerprint
  assert second.fingerprint == added['fingerprint'] != first.fingerprint
  assert added['num_documents'] == 8
  assert second.num_blocks == added['num_blocks'] > first.num_blocks
  seen = contents(second)
  assert seen['ids'][: first.num_blocks] == before['ids']
  assert set(seen['ids'][first.num_blocks :]) == {'d7', 'd8'}
  assert seen['tokens'][: first.num_blocks] == before['tokens']

  removed = remove(store, ['d7', 'd1'])
  third = Corpus.open(store)
  assert third.parent == second.fingerprint
  assert third.num_blocks == second.num_blocks
  gone = [row for row, name in enumerate(seen['ids']) if name in ('d1', 'd7')]
  assert removed['num_removed_documents'] == 2
  assert removed['num_removed_blocks'] == len(gone)
  assert np.flatnonzero(~third.alive(0, third.num_blocks)).tolist() == gone
  assert third.alive(gone[1], gone[1] + 1).tolist() == [False]
  assert third.text(gone[0]) == seen['texts'][gone[0]]

  # An earlier generation is what it was, open already or opened now.
  assert contents(first) == before
  assert contents(Corpus.open(store, first.fingerprint)) == before
  assert contents(Corpus.open(store, second.fingerprint)) == seen
  assert third.descends_from(first.fingerprint)
  assert third.descends_from(third.fingerprint)
  assert not first.descends_from(third.fingerprint)
  with pytest.raises(ValueError, match=f'{third.fingerprint}, not abc'):
    Corpus.open(store, 'abc')


def test_added_is_what_prepare_makes(store, tmp_path, vocab, write, story):
  add(store, [write([story(6)], 'more.jsonl')])
  every = write([story(n) for n in range(7)], 'every.jsonl')
  other = str(tmp_path / 'd')
  manifest = prepare([every], other, vocab=vocab, block_length=64)
  one, two = contents(Corpus.open(store)), contents(Corpus.open(other))
  counts = writer.COUNTS
  assert [one['manifest'][k] for k in counts] == [manifest[k] for k in counts]
  for name in ('tokens', 'texts', 'ids', 'titles', 'sentences'):
    assert one[name] == two[name]


def test_fingerprint_of_a_change_is_of_its_content(store, write, story):
  copies = [f'{store}{number}' for number in range(4)]
  for copy in copies:
    shutil.copytree(store, copy)
  more = write([story(7)], 'more.jsonl')
  other = write([story(8)], 'other.jsonl')
  changed = [
    add(copies[0], [more]),
    add(copies[1], [more]),
    add(copies[2], [other]),
    remove(copies[3], ['d1']),
  ]
  first, same, *others = (change['fingerprint'] for change in changed)
  assert first == same
  assert len({first, *others}) == 3


def test_a_removed_document_can_come_back(store, write, story):
  remove(store, ['d2'])
  with pytest.raises(ValueError, match="has no document 'd2'"):
    remove(store, ['d2', 'd3'])
  add(store, [write([story(2, sentences=1)], 'again.jsonl')])
  corpus = Corpus.open(store)
  rows = [r for r in range(corpus.num_blocks) if corpus.document_id(r) == 'd2']
  alive = [row for row in rows if corpus.alive(row, row + 1)[0]]
  assert ' '.join(map(corpus.text, alive)) == story(2, sentences=1)['text']
  remove(store, ['d2'])
  corpus = Corpus.open(store)
  assert not any(corpus.alive(row, row + 1)[0] for row in rows)


def test_documents_without_id_are_numbered_on(store, write, story):
  document = {'title': 'King', 'text': 'Karl was found.'}
  add(store, [write([document, document], 'more.jsonl')])
  corpus = Corpus.open(store)
  ids = [corpus.document_id(row) for row in range(corpus.num_blocks)]
  assert ids[-2:] == ['6', '7']


def test_wrong_changes_leave_the_store(store, tmp_path, write, story):
  before = contents(Corpus.open(store))
  more = write([story(9), story(3)], 'more.jsonl')
  for change, message in [
    (lambda: add(store, [more]), r"more\.jsonl:2: id: 'd3' is that of a doc"),
    (lambda: add(store, [str(tmp_path / 'none')]), 'none: no such file'),
    (lambda: remove(store, ['x', 'd1', 'y']), "no document 'x' .nor 1 others"),
    (lambda: remove(store, []), 'at least one'),
    (lambda: add(str(tmp_path / 'no'), [more]), 'no: not a corpus store'),
    (lambda: remove(str(tmp_path / 'no'), ['a']), 'no: not a corpus store'),
  ]:
    with pytest.raises(ValueError, match=message):
      change()
    assert contents(Corpus.open(store)) == before
  with (
    files.lock(store, 'writer'),
    pytest.raises(ValueError, match='another writer'),
  ):
    remove(store, ['d1'])
  assert not (tmp_path / 'no').exists()


def test_what_a_killed_change_left_is_overwritten(store, write, story):
  """Rows that were written and not committed neither show nor stay."""
  copy = f'{store}2'
  shutil.copytree(store, copy)
  before = contents(Corpus.open(store))

  def crash(self):
    for appender in self._appenders.values():
      appender.finish()
    raise KeyboardInterrupt  # as good as a kill: nothing is cleaned up

  long = write([story(n, sentences=9) for n in range(20, 40)], 'long.jsonl')
  short = write([story(7)], 'short.jsonl')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(writer.StoreWriter, 'commit', crash)
    for change in (lambda: add(store, [long]), lambda: remove(store, ['d1'])):
      with pytest.raises(KeyboardInterrupt):
        change()
      assert contents(Corpus.open(store)) == before
  for path in (store, copy):
    add(path, [short])
    remove(path, ['d4'])
  assert contents(Corpus.open(store)) == contents(Corpus.open(copy))


def _add_many(path: str, inputs: list[str]) -> None:
  for name in inputs:
    add(path, [name])


def test_readers_while_another_process_adds(store, write, story):
  """A reader sees its generation, byte for byte, through every change."""
  inputs = [
    write([story(100 * n + k) for k in range(40)], f'{n}.jsonl')
    for n in range(1, 5)
  ]
  first = Corpus.open(store)
  before = contents(first)
  process = multiprocessing.get_context('spawn').Process(
    target=_add_many, args=(store, inputs)
  )
  process.start()
  seen = set()
  while process.is_alive():
    corpus = Corpus.open(store)  # the newest there is
    seen.add(corpus.fingerprint)
    stop = corpus.num_blocks
    assert corpus.alive(0, stop).all()
    # No cache is warm in a reader that was just opened.
    assert all(corpus.texts(0, stop))
    row_L = corpus.tokens(np.array([stop - 1]))[0]
    body_L = corpus.tokenizer.encode(corpus.text(stop - 1))[0]
    assert set(body_L) <= set(row_L.tolist())
    assert contents(Corpus.open(store, first.fingerprint)) == before
    assert contents(first) == before
  assert process.exitcode == 0
  newest = Corpus.open(store)
  assert len(newest.manifest['generations']) == 5
  assert len(seen) > 1
  assert contents(Corpus.open(store, first.fingerprint)) == before


def test_threads_share_a_corpus(store):
  corpus = Corpus.open(store)
  expected = contents(Corpus.open(store))
  results = []
  threads = [
    threading.Thread(target=lambda: results.append(contents(corpus)))
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert results == [expected] * 4


def test_rows_in_any_order(store):
  corpus = Corpus.open(store)
  token_NL = corpus.tokens(slice(0, corpus.num_blocks))
  rows = np.random.default_rng(0).integers(0, corpus.num_blocks, 50)
  np.testing.assert_array_equal(corpus.tokens(rows), token_NL[rows])
  assert corpus.tokens(rows[:0]).shape == (0, 64)
  assert corpus.texts(3, 3) == corpus.texts(0, 0) == []
  for rows in (np.array([-1]), np.array([0, corpus.num_blocks])):
    with pytest.raises(IndexError, match='rows from'):
      corpus.tokens(rows)
  with pytest.raises(IndexError):
    corpus.text(corpus.num_blocks)


def test_ids_beyond_16_bits(store):
  assert arrays.layouts(64, 1 << 16)['tokens'].dtype == 'uint16'
  assert arrays.layouts(64, (1 << 16) + 1)['tokens'].dtype == 'int32'


@pytest.mark.parametrize('name', ['tokens', 'text', 'document_text'])
def test_damaged_files_are_named(store, name):
  shards = pathlib.Path(store, 'arrays', name, 'c')
  (file,) = (path for path in shards.rglob('*') if path.is_file())
  content = bytearray(file.read_bytes())
  content[10] ^= 1
  for damage in (bytes(content), content[: len(content) // 2], None):
    if damage is None:
      file.unlink()
    else:
      file.write_bytes(damage)
    with pytest.raises(ValueError, match=f'{store}: damaged') as caught:
      contents(Corpus.open(store))
    assert '\n' not in str(caught.value)


def test_stores_that_do_not_fit_are_named(store, tmp_path):
  with pytest.raises(ValueError, match='not a corpus store'):
    Corpus.open(tmp_path)
  vocabulary = pathlib.Path(store, 'vocab.txt')
  vocabulary.write_text(vocabulary.read_text() + 'more\n')
  with pytest.raises(ValueError, match='the store was made with'):
    _ = Corpus.open(store).tokenizer
  shutil.rmtree(pathlib.Path(store, 'arrays/tokens'))
  with pytest.raises(ValueError, match="damaged store: array 'tokens'"):
    Corpus.open(store)
  manifest = pathlib.Path(store, 'manifest.json')
  values = json.loads(manifest.read_text()) | {'format_version': 9}
  manifest.write_text(json.dumps(values))
  with pytest.raises(ValueError, match='format_version 9, this program reads'):
    Corpus.open(store)
  for damaged in ([], values | {'format_version': 1, 'generations': []}):
    manifest.write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match=r'manifest\.json: damaged'):
      Corpus.open(store)
