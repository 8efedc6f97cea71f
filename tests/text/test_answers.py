import random

import pytest

from realm_jax.text.answers import (
  AnswerIndex,
  compile_regex,
  find_answers,
  has_answer,
  normalize,
)
from realm_jax.text.wordpiece import SPECIAL_TOKENS, WordPiece


def _find(text, answer, mode='normalized', tokenizer=None):
  spans = find_answers(text, [answer], mode, tokenizer)
  assert has_answer(text, [answer], mode, tokenizer) == bool(spans)
  return [text[start:end] for start, end in spans]


@pytest.mark.parametrize(
  ('text', 'normal'),
  [
    ('The  Bank of an England!', 'bank of england'),
    ("U.S. -- O'Brien's", 'us obriens'),
    ('a-the b', 'athe b'),
    ('Theatre an', 'theatre'),
    ('1,234.5', '12345'),
    ('caf\u00e9 \u2014 A\tB', 'caf\u00e9 \u2014 b'),
  ],
)
def test_normalize_is_squads(text, normal):
  assert normalize(text) == normal


@pytest.mark.parametrize(
  ('text', 'answer', 'found'),
  [
    ('at The Bank of the England, then', 'bank of england', [
      'Bank of the England'
    ]),
    ('the US and U.S. but not house', 'U.S.', ['US', 'U.S']),
    ("Barack Obama's house (Obama)", 'obama', ['Obama', 'Obama']),
    ('a 5 in 3.5 and 1,235', '5', ['5']),
    ('1,234 people', '1234', ['1,234']),
    ('from 1904\u20131907', '1907', ['1907']),
    ('in 1904-1907', '1904-1907', ['1904-1907']),
    ('Jean-Luc Picard', 'Luc Picard', ['Luc Picard']),
    ('Jean-Luc Picard', 'jean luc', []),
    ('ST\u2014the released', 'released', ['released']),
    ('The Who', 'The', []),
    ('\u0130stanbul!', '\u0130stanbul', ['\u0130stanbul']),
    ('one two', 'two three', []),
    ('', 'x', []),
  ],
)  # fmt: skip
def test_normalized_finds_answers_in_running_text(text, answer, found):
  assert _find(text, answer) == found


def test_a_found_span_has_the_normal_form_of_its_answer():
  generator = random.Random(0)
  units = ['the', 'a', 'x', 'Xy', '5', '.', "'", '-', ' ', ' ', ' ', '\u2014']
  hits = 0
  for _ in range(3000):
    text = ''.join(generator.choices(units, k=12))
    answer = ''.join(generator.choices(units, k=4))
    for start, end in find_answers(text, [answer], 'normalized'):
      assert normalize(text[start:end]) == normalize(answer)
      hits += 1
    # All that stands there word for word is found.
    normal, wanted = normalize(text), normalize(answer)
    if wanted and f' {wanted} ' in f' {normal} ':
      assert has_answer(text, [answer], 'normalized')
    if wanted not in normal:
      assert not has_answer(text, [answer], 'normalized')
  assert hits > 300


def test_index_tells_answers_apart():
  index = AnswerIndex(['New York', 'york', '', 'New York City', 'New York'])
  found = sorted(index.find('in New York City'))
  assert found == [(0, 3, 11), (1, 7, 11), (3, 3, 16), (4, 3, 11)]


def test_raw():
  assert _find('banana Ana', 'ana', 'raw') == ['ana', 'ana']
  assert find_answers('banana', ['ana'], 'raw') == [(1, 4), (3, 6)]
  assert _find('Banana', 'banana', 'raw') == []
  assert _find('x', '', 'raw') == []


def test_token(tmp_path):
  path = tmp_path / 'vocab.txt'
  vocab = [*SPECIAL_TOKENS, 'new', 'york', '##er', '.', '[UNK]x']
  path.write_text('\n'.join(vocab))
  tokenizer = WordPiece.from_file(path)
  text = 'New  York. newyork new yorker'
  assert _find(text, 'new york', 'token', tokenizer) == [
    'New  York',
    'new york',
  ]
  assert _find(text, 'york.', 'token', tokenizer) == ['York.']
  assert _find(text, '', 'token', tokenizer) == []
  with pytest.raises(ValueError, match='needs a tokenizer'):
    find_answers(text, ['new'], 'token')


def test_regex():
  assert _find('Long island, NewYork', r'new\s?york|long', 'regex') == [
    'Long',
    'NewYork',
  ]
  assert _find('abc', 'x*', 'regex') == []
  for pattern in ('(', 'a{99999999999999999999}'):
    with pytest.raises(ValueError, match='is not a regular expression'):
      compile_regex(pattern)


def test_mode_must_be_known():
  with pytest.raises(ValueError, match="'fuzzy': choose from normalized"):
    find_answers('x', ['x'], 'fuzzy')


def test_long_texts_take_linear_time():
  # A second or two; hours if the time were quadratic.
  for unit in ('a.b', '\u0301', '\x00', "x'", 'the\u2014', '1,'):
    find_answers(unit * 500_000, ['b', 'a b', 'x'], 'normalized')
