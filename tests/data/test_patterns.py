import re

import pytest

from realm_jax.data.patterns import PatternIndex, required


@pytest.mark.parametrize(
  ('pattern', 'needles'),
  [
    ('Thriller', ['thriller']),
    ('green|yellow', ['green', 'yellow']),
    (r'Sioux.*river|river.*Sioux', ['sioux', 'river']),
    (r'98(4|6)\s?-?\s?f(ee|oo)?t\.?', ['98']),
    (r'flocks?', ['flock']),
    (r'ab*c', ['a']),
    (r'(Io|Europa){4}', None),
    (r'[a]bc{0}d', ['b']),
    (r'L\.P\.|\{\}|LLLP', None),
    (r'\x41bc', None),
    (r'(?i)abc', None),
    (r'abc(?=def)', None),
    (r'(a)\1bc', None),
    (r'[]x]abc', ['abc']),
    (r'a{2}bcd', ['bcd']),
    ('Sü?dhof', ['dhof']),
  ],
)
def test_required_texts(pattern, needles):
  assert required(pattern) == needles


PATTERNS = [
  r'199(4|8)|1995', r'\bU(nited|\.)?\s*S(tates|\.)?\b', 'istanbul', 'x*',
  r'a\b|(x)', r'14,?11[0-9]\s*(\'|f(ee|oo)?t)', r'\Astone', 'stone$', 'mask',
  r'(?s)old.town', r'q*|old', 'old\ntown', r'sm?all', r'kelvin', r'[^a-z ]K',
]  # fmt: skip
TEXTS = [
  'In 1994 the U.S. saw it.', 'ISTANBUL', '\u0130stanbul and \u0131stanbul',
  '14,112 ft', 'Stone\nold\ntown stone', '', 'ma\u017fk', 'sall',
  '2 \u212aelvin', 'united  states of 1995', 'xx',
  'stone', '\u0130\u0130\u0130 small',
]  # fmt: skip


def test_matches_are_those_of_each_pattern_on_each_text():
  expected = {
    (p, t)
    for p, pattern in enumerate(PATTERNS)
    for t, text in enumerate(TEXTS)
    if any(m[0] for m in re.finditer(pattern, text, re.IGNORECASE))
  }
  found = list(PatternIndex(PATTERNS).find(TEXTS))
  assert len(found) == len(set(found))
  assert set(found) == expected
  assert len(expected) > 15
