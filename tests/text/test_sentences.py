import random

import pytest

from realm_jax.text.sentences import split_sentences


def _split(text):
  return [text[start:end] for start, end in split_sentences(text)]


@pytest.mark.parametrize(
  'sentences',
  [
    ['It rained.', 'We left!', 'Why?', 'Nobody knows\u2026', 'Later it dried.'],
    [
      'Dr. J. K. Rowling met Mr. Smith of No. 5 Main St. in London.',
      'He left.',
    ],
    ['Pi is 3.14 and e is 2.718.', 'Both are real.'],
    ['The U.S. Army came to Washington, D.C. in 1865.', 'It stayed.'],
    ['He moved to the U.S.', 'It was 1984.'],
    ['Arrive at 5 p.m. on Monday, e.g. by train.', 'Bring cakes, pies, etc.'],
    ['"Is it true?" he asked.', '"Yes."', 'She left.'],
    ['\u201cWe won.\u201d', '\u201cThey lost.\u201d', 'So it ended.'],
    ['It closed (see Fig. 3).', '(It opened in 1901.)', 'A museum is there.'],
    ['1. The list begins here.', '2. Another follows.'],
    ['Martin Luther King Jr. spoke.', 'Apple Inc. Shares rose.'],
    ['It ended in 1984.', '118 elements are known.', '\u00c9ric came.'],
    ['Wait... what?', 'Well...', 'Nothing.'],
    ['Vitamin C.', 'It is healthy.'],
    ['Stop!', '$5 was lost.', '\u65e5\u672c is Japan.'],
  ],
)
def test_splits(sentences):
  assert _split(' '.join(sentences)) == sentences


def test_lines():
  assert _split('A heading\nThe text. More\n\nlower case\n') == [
    'A heading',
    'The text.',
    'More',
    'lower case',
  ]
  # A line broken within a sentence.
  assert _split('The long\nsentence goes on.') == [
    'The long\nsentence goes on.'
  ]


def test_nothing():
  assert split_sentences('') == split_sentences(' \n\n ') == []
  assert _split('  one ') == ['one']


def test_only_space_is_lost():
  generator = random.Random(0)
  alphabet = 'aA1.!?"\' \n\t()\u2026\u201d-\u00e9\x85'
  for _ in range(2000):
    text = ''.join(generator.choices(alphabet, k=generator.randrange(30)))
    end = 0
    for start, stop in split_sentences(text):
      assert end <= start < stop
      assert not text[end:start].strip()
      assert text[start:stop].strip() == text[start:stop]
      end = stop
    assert not text[end:].strip()


def test_long_texts_take_linear_time():
  # A second or two; hours if the time were quadratic.
  for unit in ('. ', 'A. ', '\n', ' ', '"', '!? "', 'Mr. '):
    split_sentences(unit * 500_000)
  split_sentences('.' * 500_000 + 'x')
