import random

import pytest

from realm_jax.text.tagger import RuleTagger, tag_all


def _tag(sentence):
  return [sentence[start:end] for start, end in RuleTagger()(sentence)]


@pytest.mark.parametrize(
  ('sentence', 'spans'),
  [
    ('It is near the Bank of England today.', ['Bank of England']),
    ('In Bonn is Ludwig van Beethoven.', ['Bonn', 'Ludwig van Beethoven']),
    ('The Beatles came to New York.', ['Beatles', 'New York']),
    ("J. K. Rowling saw O'Brien in St. Louis.", [
      'J. K. Rowling',
      "O'Brien",
      'St. Louis',
    ]),
    ("Obama's wife and Jean-Luc Picard", ['Obama', 'Jean-Luc Picard']),
    ('It was AT&T, NASA and the U.S. Army.', ['AT&T', 'NASA', 'U.S. Army']),
    ('\u00c9ric saw \u0141\u00f3d\u017a', ['\u00c9ric', '\u0141\u00f3d\u017a']),
    ('They met President Barack Obama.', ['Barack Obama']),
    ('He was chased by Alexander the Great.', ['Alexander the Great']),
    ('It was Apollo 11 in World War II.', ['Apollo 11', 'World War II']),
    ('It belongs to the US, not the WHO.', ['US', 'WHO']),
    ('A US-led force took Chad.', ['US', 'Chad']),
  ],
)  # fmt: skip
def test_names(sentence, spans):
  assert _tag(sentence) == spans


@pytest.mark.parametrize(
  ('sentence', 'spans'),
  [
    ('Gigi has a cat.', ['Gigi']),
    ('However, he left.', []),
    ('Anarchism is a philosophy.', []),
    ('Quickly the men ran.', []),
    ('Many Americans left.', ['Americans']),
    ('Centre-right parties won.', []),
    ('"The end," I said.', []),
    ('After the Battle of Hastings he fled.', ['Battle of Hastings']),
    ('Portions of Kent flooded.', ['Kent']),
    ('New York grew.', ['New York']),
    ('The The', []),
    ('When al-Qiyamah will be is not said, yet.', ['al-Qiyamah']),
  ],
)
def test_the_first_word_needs_more_than_its_capital(sentence, spans):
  assert _tag(sentence) == spans


@pytest.mark.parametrize(
  'date',
  [
    '12 March 1984',
    'March 12, 1984',
    'March 12th',
    '3rd of May',
    'March 1984',
    'Sept. 3, 1901',
    '1980s',
    '1984',
    '5th century',
    '5th century BC',
    'twentieth century',
    '44 BC',
    'AD 79',
    '1984-03-12',
    '12/03/1984',
  ],
)
def test_dates(date):
  assert _tag(f'it was {date}, he said') == [date]
  assert _tag(f'{date}.') == [date]


@pytest.mark.parametrize(
  'number',
  [
    '7',
    '1,234',
    '3.5',
    '1,234,567.89',
    '12%',
    '38th',
    '11 million',
    '2.5 billion',
    'two',
    'twenty-five',
    'three hundred',
  ],
)
def test_numbers(number):
  assert _tag(f'there were {number} of them') == [number]


def test_what_is_no_number():
  assert _tag('the one formula_7 of sixteenths in v2.5.1x') == []


def test_ranges_are_two():
  assert _tag('from 1904\u20131907 and 3-4') == ['1904', '1907', '3', '4']


_WORDS = """
  The In Bank of the England 12 March 1984 , . - "Aa" U.S. J. two and million
  President St. New \u00c9 \u65e5 ' & van (x) 1,000 BC Mr
"""


def test_spans_are_sorted_and_disjoint():
  generator = random.Random(0)
  words = _WORDS.split()
  for _ in range(3000):
    sentence = generator.choice([' ', ' ', '']).join(
      generator.choices(words, k=generator.randrange(12))
    )
    end = 0
    for start, stop in RuleTagger()(sentence):
      assert end <= start < stop <= len(sentence)
      assert sentence[start:stop].strip() == sentence[start:stop]
      end = stop


def test_long_texts_take_linear_time():
  # A second or two; hours if the time were quadratic.
  for unit in (
    'A ',
    'Aa ',
    'A.',
    'The ',
    '1,000,',
    'Al de la ',
    "O'",
    'In the ',
  ):
    RuleTagger()(unit * 500_000)


def test_many_sentences_are_tagged_as_one_by_one():
  rng = random.Random(1)
  words = """
    The In President Vice-President Prime Minister Mr. St. Bank of the new
    England US J. U.S. 12 March 1984 44 BC thirty ninth century -led O'Brien
    " ( . , Hundreds One A \u00c9ric is 18 % million Mayor Centre-right
  """.split()  # noqa: SIM905
  words.append('and\nthe')
  sentences = [
    ' '.join(rng.choices(words, k=rng.randrange(9))) for _ in range(2000)
  ]
  tagger = RuleTagger()
  expected = [
    (number, start, end)
    for number, sentence in enumerate(sentences)
    for start, end in tagger(sentence)
  ]
  assert len(expected) > 2000
  for given in (tagger, lambda sentence: tagger(sentence)):
    found = tag_all(given, sentences)
    assert list(map(tuple, found.T.tolist())) == expected
  assert tag_all(tagger, []).shape == (3, 0)
