"""What a stage refuses, in one line; and small inputs that it must not."""

import json
import pathlib

import numpy as np
import pytest
import small_runs

from realm_jax import cli
from realm_jax.workdir import checkpoints, files


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
  with small_runs.compile_once(tmp_path_factory.mktemp('cache')):
    yield


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return small_runs.make_corpus(tmp_path_factory.mktemp('corpus'))


@pytest.fixture(scope='module')
def other(tmp_path_factory):
  """Of other documents and another vocabulary."""
  return small_runs.make_corpus(tmp_path_factory.mktemp('other'), 12)


@pytest.fixture
def stage(tmp_path, corpus):
  """stage(verb, **config) -> exit status of the verb in tmp_path/w."""

  def run(verb, corpus=corpus, **changes):
    if 'questions' not in changes:
      changes['questions'] = questions(tmp_path)
    experiment = small_runs.write_experiment(
      tmp_path / 'x.py', corpus, **changes
    )
    workdir = str(tmp_path / 'w')
    return cli.main([verb, '--config', experiment, '--workdir', workdir])

  return run


def questions(folder, numbers=range(8), **changes):
  return small_runs.write_lines(
    folder / 'questions.jsonl',
    [small_runs.question(n) | changes for n in numbers],
  )


def assert_refused(capsys, status, *words):
  said = capsys.readouterr().err.splitlines()
  assert status == 2, said
  errors = [line for line in said if line.startswith('error: ')]
  assert len(errors) == 1 and said[-1] == errors[0]
  for word in words:
    assert word in errors[0]


@pytest.mark.parametrize(
  'verb, changes, words',
  [
    ('ict', {'batch_size': 12}, ['batch_size: 12', 'mesh.data 8']),
    ('ict', {'mesh': {'data': 3}}, ['mesh.data 3', '8 devices']),
    ('mlm', {'micro_batches': 2}, ['batch_size: 8', 'micro_batches 2']),
    ('ict', {'corpus': ''}, ['config.corpus: is not set']),
    ('ict', {'corpus': 'nowhere'}, ['nowhere', 'not a corpus store']),
    ('ict', {'init_from': 'nowhere'}, ['init_from: ', '/nowhere is neither']),
    ('mlm', {'model': {'vocab_size': 20}}, ['vocab_size: 20']),
    ('mlm', {'model': {'max_positions': 20}}, ['max_positions: 20']),
    (
      'finetune',
      {'reader_length': 24},
      ['reader_length: 24', 'more than query_length, 24'],
    ),
    (
      'finetune',
      {'closed_book': True, 'max_answer_length': 60},
      ['max_positions: 80', 'up to 85'],
    ),
    ('pretrain', {'num_candidates': 32}, ['num_candidates: 32', '30 blocks']),
    (
      'pretrain',
      {'index': {'kind': 'scann_host', 'num_shards': 31}},
      ['index.num_shards: 31', '30 blocks'],
    ),
    (
      'finetune',
      {'reader_beam': 31, 'retriever_beam': 40},
      ['reader_beam: 31', '30 blocks'],
    ),
    ('finetune', {'questions': ''}, ['config.questions: is not set']),
    ('finetune', {'questions': 'none.jsonl'}, ['none.jsonl: no such file']),
    ('finetune', {'dev_questions': 'none.jsonl'}, ['none.jsonl: no such']),
  ],
)
def test_config_that_does_not_fit(
  stage, tmp_path, capsys, verb, changes, words
):
  corpus = {'corpus': changes.pop('corpus')} if 'corpus' in changes else {}
  assert_refused(capsys, stage(verb, **corpus, **changes), *words)
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
  'content, words',
  [
    (b'', ['questions.jsonl: empty file']),
    (b'{"question": "a"}\n', ['questions.jsonl:1: has neither answers']),
    (b'{"question": "", "answers": ["a"]}\n', ['questions.jsonl:1: question']),
    (b'{"text": "a"}\n', ["questions.jsonl:1: has no field 'question'"]),
    (b'\n{"question"', ['questions.jsonl:2: ', 'JSON']),
    (b'{"question": "\xff", "answers": ["a"]}', ['questions.jsonl:1: ', 'UTF']),
  ],
)
def test_questions_that_cannot_be_read(stage, tmp_path, capsys, content, words):
  path = tmp_path / 'bad' / 'questions.jsonl'
  path.parent.mkdir()
  path.write_bytes(content)
  assert_refused(capsys, stage('finetune', questions=str(path)), *words)


def test_stores_of_two_vocabularies(stage, capsys, other):
  status = stage('pretrain', text_corpus=other)
  assert_refused(capsys, status, 'text_corpus', 'prepare both with one vocab')


def test_an_index_of_another_corpus(stage, tmp_path, capsys, corpus, other):
  experiment = small_runs.write_experiment(
    tmp_path / 'other.py', other, num_steps=1
  )
  made = str(tmp_path / 'other')
  assert cli.main(['ict', '--config', experiment, '--workdir', made]) == 0
  status = stage('pretrain', index_from=made)
  assert_refused(capsys, status, 'index_from', 'has no index version')
  assert cli.main(['refresh', '--workdir', made]) == 0
  want, have = (
    json.loads(pathlib.Path(c, 'manifest.json').read_text())['fingerprint']
    for c in (corpus, other)
  )
  status = stage('pretrain', index_from=made)
  assert_refused(capsys, status, 'corpus_fingerprint', want, have)
  # Nor does a run take another corpus in the place of its own.
  pathlib.Path(made, 'config.json').write_text(
    pathlib.Path(made, 'config.json').read_text().replace(other, corpus)
  )
  search = ['search', '--workdir', made, '--query', 'Where is Lund?']
  assert_refused(capsys, cli.main(search), have, want)


@pytest.mark.parametrize('verb', ['mlm', 'ict', 'pretrain', 'finetune'])
def test_a_corpus_of_three_documents_trains(tmp_path, stage, capsys, verb):
  corpus = small_runs.make_corpus(tmp_path, 3)
  # The own block is banned: a place among four candidates stays empty.
  dev = {'dev_questions': questions(tmp_path)} if verb == 'pretrain' else {}
  status = stage(verb, corpus=corpus, num_candidates=4, num_steps=2, **dev)
  assert status == 0, capsys.readouterr().err
  lines = files.read_lines(tmp_path / 'w' / 'metrics.jsonl')
  assert [line['step'] for line in lines if 'loss' in line] == [1, 2]
  assert bool(dev) == ('recall@5' in lines[-1])
  lines = [line for line in lines if 'loss' in line]
  assert all(np.isfinite(line['loss']) for line in lines)
  assert checkpoints.steps(tmp_path / 'w')[-1] == 2


def test_questions_without_an_answer_in_the_corpus(tmp_path, stage, capsys):
  asked = questions(tmp_path, answers=['Atlantis'])
  assert stage('finetune', questions=asked, num_steps=2) == 0
  said = capsys.readouterr().err
  counts = next(line for line in said.splitlines() if 'answers: {' in line)
  assert ': 8' in counts
  lines = files.read_lines(tmp_path / 'w' / 'metrics.jsonl')
  assert [line['loss'] for line in lines] == [0, 0]
