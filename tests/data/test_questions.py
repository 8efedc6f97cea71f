import gzip
import json

import pytest

from realm_jax.corpus import sources
from realm_jax.data.questions import Question, read_questions


def write(path, *records):
  opener = gzip.open if str(path).endswith('.gz') else open
  with opener(path, 'wt', encoding='utf-8') as file:
    for record in records:
      file.write(json.dumps(record) + '\n')
  return str(path)


def test_both_forms_and_compression(tmp_path):
  path = write(
    tmp_path / 'q.jsonl.gz',
    {'id': 7, 'question': 'who?', 'answers': ['Ada', 'Bob']},
    {'question': 'how tall?', 'answer_regex': r'6,?194\s*m'},
    {'question': 'when?', 'answer_regex': ['1969', '196[89]']},
  )
  assert read_questions(path) == [
    Question('7', 'who?', ('Ada', 'Bob'), False),
    Question('2', 'how tall?', (r'6,?194\s*m',), True),
    Question('3', 'when?', ('1969', '196[89]'), True),
  ]


@pytest.mark.parametrize(
  ('record', 'message'),
  [
    ({'answers': ['a']}, 'question'),
    ({'question': ' ', 'answers': ['a']}, 'question'),
    ({'question': 3, 'answers': ['a']}, 'question'),
    ({'question': 'q?'}, 'neither answers nor answer_regex'),
    ({'question': 'q?', 'answers': []}, 'answers'),
    ({'question': 'q?', 'answers': 'a'}, 'answers'),
    ({'question': 'q?', 'answers': ['a', None]}, 'answers'),
    ({'question': 'q?', 'answer_regex': ''}, 'answer_regex'),
    ({'question': 'q?', 'answer_regex': '(a'}, 'not a regular expression'),
  ],
)
def test_errors_name_file_and_line(tmp_path, record, message):
  path = write(
    tmp_path / 'q.jsonl', {'question': 'who?', 'answers': ['A']}, record
  )
  with pytest.raises(ValueError, match=message) as caught:
    read_questions(path)
  assert f'{path}:2' in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('field', ['answer', 'answers'])
def test_tfds_features(monkeypatch, field):
  examples = [{'question': 'who?', field: ['Ada'], 'url': 'x'}, {'url': 'y'}]
  monkeypatch.setattr(sources, 'read_tfds', lambda name: enumerate(examples))
  with pytest.raises(ValueError, match='tfds:web_questions:test example 1'):
    read_questions('tfds:web_questions:test')
  del examples[1]
  assert read_questions('tfds:web_questions') == [
    Question('0', 'who?', ('Ada',), False)
  ]
