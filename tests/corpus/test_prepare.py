"""Making a store: contents, determinism, streaming, wrong input, crashes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from realm_jax.corpus import change
from realm_jax.corpus.prepare import prepare
from realm_jax.corpus.store import Corpus

GOOD = {'id': 'a', 'title': 'King', 'text': 'Karl was born.'}
KEYS = {
  'num_documents',
  'num_blocks',
  'block_length',
  'num_sentences',
  'num_salient_spans',
  'tokenizer_digest',
  'fingerprint',
}


def files_of(path) -> dict[str, bytes]:
  """Contents of all files but the lock, which names a process."""
  return {
    str(file.relative_to(path)): file.read_bytes()
    for file in sorted(pathlib.Path(path).rglob('*'))
    if file.is_file() and file.name != '.writer.lock'
  }


def test_store_holds_the_documents(tmp_path, vocab, write, story):
  documents = [story(n, sentences=3 * n + 1) for n in range(6)]
  del documents[4]['id']
  manifest = prepare(
    [write(documents)], str(tmp_path / 'c'), vocab=vocab, block_length=96
  )
  on_disk = json.loads((tmp_path / 'c/manifest.json').read_text())
  assert on_disk == manifest
  assert set(manifest) >= KEYS
  assert manifest['num_documents'] == 6
  assert manifest['block_length'] == 96
  corpus = Corpus.open(tmp_path / 'c')
  assert corpus.num_blocks == manifest['num_blocks'] > 6
  rows = range(corpus.num_blocks)
  ids = [corpus.document_id(row) for row in rows]
  assert list(dict.fromkeys(ids)) == ['d0', 'd1', 'd2', 'd3', '4', 'd5']
  texts = corpus.texts(0, corpus.num_blocks)
  for document in documents:
    own = [row for row in rows if ids[row] == document.get('id', '4')]
    assert ' '.join(texts[row] for row in own) == document['text']
    assert {corpus.title(row) for row in own} == {document['title']}
  tokenizer = corpus.tokenizer
  token_NL = corpus.tokens(slice(0, corpus.num_blocks))
  assert token_NL.dtype == np.uint16
  for token_L, row in zip(token_NL, rows, strict=True):
    title = tokenizer.encode(corpus.title(row))[0]
    body = tokenizer.encode(corpus.text(row))[0]
    expected = [tokenizer.cls_id, *title, tokenizer.sep_id]
    expected += [*body, tokenizer.sep_id]
    assert token_L.tolist() == expected + [0] * (96 - len(expected))
    assert corpus.text(row) == texts[row]
  sentences = corpus.sentences
  assert (
    len(sentences.start) == manifest['num_sentences'] == corpus.num_sentences
  )
  assert len(sentences.span_start) == manifest['num_salient_spans'] > 0


def test_sentences_and_spans_of_a_block(tmp_path, vocab, write):
  text = 'She was born near Karl. The river was found in 1907.'
  path = write([{'title': 'Anna', 'text': text}] * 2)
  prepare([path], str(tmp_path / 'c'), vocab=vocab)
  corpus = Corpus.open(tmp_path / 'c')
  sentences = corpus.sentences
  assert sentences.block_offsets.tolist() == [0, 2, 4]
  assert sentences.hash[0] == sentences.hash[2] != sentences.hash[1]
  decode = corpus.tokenizer.decode
  body_L = corpus.tokens(slice(1, 2))[0, 3:]  # [CLS] anna [SEP]
  assert [
    decode(body_L[start:end])
    for start, end in zip(sentences.start[2:], sentences.end[2:], strict=True)
  ] == ['she was born near karl.', 'the river was found in 1907.']
  spans = [
    [
      decode(body_L[sentences.span_start[p] : sentences.span_end[p]])
      for p in range(*sentences.span_offsets[s : s + 2])
    ]
    for s in (2, 3)
  ]
  assert spans == [['karl'], ['1907']]


def test_workers_do_not_change_a_byte(
  tmp_path, vocab, write, story, monkeypatch
):
  path = write([story(n, sentences=n % 7 + 1) for n in range(120)])
  one = prepare([path], str(tmp_path / 'one'), vocab=vocab, block_length=64)
  # Other stretches for the workers than for the single process.
  monkeypatch.setattr('realm_jax.corpus.prepare._BATCH_CHARACTERS', 3000)
  two = prepare(
    [path], str(tmp_path / 'two'), vocab=vocab, block_length=64, workers=2
  )
  assert one == two
  assert files_of(tmp_path / 'one') == files_of(tmp_path / 'two')


def test_fingerprint_is_of_the_content(tmp_path, vocab, write, story):
  documents = [story(n) for n in range(3)]
  plain = write(documents)

  def fingerprint(name, inputs, **options):
    options = {'vocab': vocab, 'block_length': 64} | options
    return prepare(inputs, str(tmp_path / name), **options)['fingerprint']

  first = fingerprint('a', [plain])
  split = [write(documents[:1], '1.jsonl'), write(documents[1:], '2.jsonl')]
  assert fingerprint('b', split) == first
  assert fingerprint('c', split[::-1]) != first
  assert fingerprint('d', [plain], block_length=65) != first
  changed = [*documents[:2], documents[2] | {'id': 'other'}]
  assert fingerprint('e', [write(changed, 'e.jsonl')]) != first


def test_learns_a_vocabulary(tmp_path, write, story):
  path = write([story(n) for n in range(5)])
  options = {'train_vocab': 80, 'block_length': 64}
  manifest = prepare([path], str(tmp_path / 'a'), **options)
  corpus = Corpus.open(tmp_path / 'a')
  assert 40 < corpus.tokenizer.vocab_size <= 80
  assert corpus.tokenizer.digest == manifest['tokenizer_digest']
  again = prepare(
    [path], str(tmp_path / 'b'), vocab=str(tmp_path / 'a/vocab.txt'),
    block_length=64,
  )  # fmt: skip
  assert again['fingerprint'] == manifest['fingerprint']
  assert prepare([path], str(tmp_path / 'a'), **options) == manifest


def test_store_that_is_there_stays(tmp_path, vocab, write, story, capsys):
  path = write([story(n) for n in range(3)])
  other = write([story(4)], 'other.jsonl')
  output = str(tmp_path / 'c')
  manifest = prepare([path], output, vocab=vocab)
  before = files_of(output)
  assert prepare([path], output, vocab=vocab) == manifest
  for inputs, options in [
    ([other], {'vocab': vocab}),
    ([path], {'vocab': vocab, 'block_length': 100}),
    ([path], {'train_vocab': 60}),
  ]:
    with pytest.raises(ValueError, match='holds another corpus'):
      prepare(inputs, output, **options)
  assert files_of(output) == before
  assert not capsys.readouterr().err
  change.add(output, [other])
  changed = files_of(output)
  prepare([path], output, vocab=vocab)
  assert 'changed since by `realm corpus`' in capsys.readouterr().err
  assert files_of(output) == changed


def test_other_files_are_not_touched(tmp_path, vocab, write, story):
  output = tmp_path / 'home'
  output.mkdir()
  (output / 'vocab.txt').write_text('mine')
  with pytest.raises(ValueError, match='holds files of something else'):
    prepare([write([story(1)])], str(output), vocab=vocab)
  with pytest.raises(ValueError, match=r'in\.jsonl: is a file'):
    prepare([write([story(1)])], str(tmp_path / 'in.jsonl'), vocab=vocab)
  assert files_of(output) == {'vocab.txt': b'mine'}


@pytest.mark.parametrize(
  'documents, message',
  [
    ([GOOD, GOOD], r"in\.jsonl:2: id: 'a' is that of .*in\.jsonl:1 already"),
    ([GOOD, GOOD | {'text': ''}], r'in\.jsonl:2: text: empty'),
    ([{'title': 'x', 'text': '\u200b'}], 'no document has a wordpiece'),
    ([], 'empty file'),
  ],
)
@pytest.mark.parametrize('workers', [1, 2])
def test_wrong_input_leaves_nothing(
  tmp_path, vocab, write, documents, message, workers
):
  path = write(documents)
  with pytest.raises(ValueError, match=message):
    prepare([path], str(tmp_path / 'c'), vocab=vocab, workers=workers)
  assert not (tmp_path / 'c').exists()


def test_wrong_arguments_are_named(tmp_path, vocab, write, story):
  path = write([story(1)])
  output = str(tmp_path / 'c')
  no_mask = tmp_path / 'no_mask.txt'
  no_mask.write_text(pathlib.Path(vocab).read_text().replace('[MASK]\n', ''))
  for options, message in [
    ({'vocab': str(no_mask)}, r'no_mask\.txt: has no \[MASK\]'),
    ({'vocab': str(tmp_path / 'none')}, 'none: no such file'),
    ({'vocab': str(tmp_path)}, 'is a directory'),
    ({}, 'exactly one'),
    ({'vocab': vocab, 'train_vocab': 90}, 'exactly one'),
    ({'train_vocab': 3}, 'vocabulary size 3'),
    ({'vocab': vocab, 'block_length': 15}, '--block-length 15: must be at'),
    ({'vocab': vocab, 'workers': 0}, '--workers 0'),
  ]:
    with pytest.raises(ValueError, match=message):
      prepare([path], output, **options)
    assert not os.path.exists(output)


SCRIPT = """
  import dataclasses, resource, signal, sys
  from realm_jax.corpus import arrays, prepare
  limit, inputs, vocab, output, small = sys.argv[1:]
  layouts = arrays.layouts
  if int(small):  # shards that even a small corpus fills
    arrays.layouts = lambda *sizes: {
      name: dataclasses.replace(layout, shard=layout.chunk)
      for name, layout in layouts(*sizes).items()
    }
  if int(limit):  # no file may be longer: what a full disk is to a writer
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
  try:
    prepare.prepare([inputs], output, vocab=vocab, block_length=64)
  except OSError as error:
    print('OSError', str(error).count('\\n'))
  # Not getrusage: its peak is that of the process that forked this one too.
  print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
"""


def start(tmp_path, *arguments) -> subprocess.Popen:
  script = tmp_path / 'script.py'
  script.write_text(textwrap.dedent(SCRIPT))
  return subprocess.Popen(
    [sys.executable, str(script), *map(str, arguments)],
    env=os.environ
    | {
      'PYTHONPATH': os.getcwd(),
      # What is free goes back at once, so that the peak is what was needed.
      'MALLOC_ARENA_MAX': '1',
      'MALLOC_MMAP_THRESHOLD_': '65536',
    },
    stdout=subprocess.PIPE,
    text=True,
  )


def test_worker_that_dies_is_an_error(tmp_path, vocab, write, monkeypatch):
  # A worker that cannot load what it is given ends at once.
  monkeypatch.setattr('realm_jax.corpus.prepare._Encoder.__reduce__', _die)
  with pytest.raises(ChildProcessError, match='a worker process died'):
    prepare([write([GOOD])], str(tmp_path / 'c'), vocab=vocab, workers=2)
  assert not (tmp_path / 'c').exists()


def _die(self):
  return os._exit, (9,)


def test_full_disk_leaves_nothing(tmp_path, vocab, write, story):
  path = write([story(n, sentences=20) for n in range(300)])
  output = tmp_path / 'c'
  process = start(tmp_path, 16_000, path, vocab, output, 0)
  assert process.communicate()[0].split()[:2] == ['OSError', '0']
  assert not output.exists()


def test_killed_process_leaves_nothing_readable(tmp_path, vocab, write, story):
  path = write([story(n, sentences=20) for n in range(8000)])
  output = tmp_path / 'c'
  process = start(tmp_path, 0, path, vocab, output, 0)
  deadline = time.monotonic() + 60
  while not any(output.glob('arrays/tokens/c/*/*')):  # rows are on disk
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  with pytest.raises(ValueError, match='another writer is running'):
    prepare([path], str(output), vocab=vocab)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  with pytest.raises(ValueError, match='not a corpus store'):
    Corpus.open(output)
  # Run again, it starts anew.
  small = write([story(1)], 'small.jsonl')
  manifest = prepare([small], str(output), vocab=vocab)
  assert manifest == prepare([small], str(tmp_path / 'd'), vocab=vocab)
  assert files_of(output) == files_of(tmp_path / 'd')


def test_memory_does_not_grow_with_the_corpus(tmp_path, vocab, write, story):
  used = {}
  for count in (4000, 32000):
    # The same words: the tokenizer remembers words, up to a limit.
    documents = [story(n % 500) | {'id': str(n)} for n in range(count)]
    path = write(documents, f'{count}.jsonl')
    process = start(tmp_path, 0, path, vocab, tmp_path / str(count), 1)
    used[count] = int(process.communicate()[0].split()[-1]) * 1024
  # 28,000 documents more: 10 MB of input, and rows of twice as many bytes. A
  # few megabytes of peak memory come and go with the allocator.
  assert os.path.getsize(path) * 7 / 8 > 10_000_000
  assert used[32000] - used[4000] < 6_000_000, used
