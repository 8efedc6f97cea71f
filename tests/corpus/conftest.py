"""A small vocabulary, and documents written as JSON lines."""

import json
import pathlib
import string

import pytest

WORDS = ('the', 'of', 'in', 'was', 'she', 'river', 'king', 'born', 'near')
WORDS += ('found', 'house', 'anna', 'karl', 'lund')


@pytest.fixture(scope='session')
def vocab(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp('vocab') / 'vocab.txt'
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  pieces += string.ascii_lowercase + string.digits + string.punctuation
  pieces += ['##' + c for c in string.ascii_lowercase + string.digits]
  pieces += WORDS
  path.write_text(''.join(f'{piece}\n' for piece in pieces))
  return str(path)


@pytest.fixture
def write(tmp_path):
  """write(documents, name='in.jsonl') -> path."""

  def write_documents(documents: list[dict], name: str = 'in.jsonl') -> str:
    path = pathlib.Path(tmp_path, name)
    path.write_text(
      ''.join(f'{json.dumps(d, ensure_ascii=False)}\n' for d in documents),
      encoding='utf-8',
    )
    return str(path)

  return write_documents


@pytest.fixture
def story():
  """story(number, sentences=4): a document unlike those of other numbers."""
  return _story


def _story(number: int, sentences: int = 4) -> dict:
  text = ' '.join(
    f'Anna Lund {number} was born near the river in {1800 + number + i}. '
    f'She found house {i} of King Karl {number}.'
    for i in range(sentences)
  )
  return {'id': f'd{number}', 'title': f'Anna Lund {number}', 'text': text}
