import numpy as np
import pytest

from realm_jax.scores.qa import bootstrap, exact_match, f1


def test_exact_match_normalized():
  assert exact_match('The U.S.!', ['france', 'us'], 'normalized')
  assert not exact_match('the us army', ['us'], 'normalized')
  assert not exact_match('us', [], 'normalized')


def test_exact_match_raw():
  assert exact_match('US', ['US'], 'raw')
  assert not exact_match('us', ['US'], 'raw')


def test_exact_match_regex_is_from_the_start():
  assert exact_match('New  york city', [r'new\s+York'], 'regex')
  assert not exact_match('in New York', ['New York'], 'regex')
  assert exact_match('1999', ['nine', r'19\d\d'], 'regex')
  with pytest.raises(ValueError, match='is not a regular expression'):
    exact_match('x', ['('], 'regex')


def test_exact_match_has_no_token_mode():
  with pytest.raises(ValueError, match="'token': choose from"):
    exact_match('x', ['x'], 'token')


@pytest.mark.parametrize(
  ('prediction', 'answers', 'score'),
  [
    ('the Bank of England', ['bank of england'], 1.0),
    ('Bank', ['bank of england', 'x'], 2 * 1 * (1 / 3) / (1 + 1 / 3)),
    ('b b a1', ['b c c b'], 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
    ('x', ['y'], 0.0),
    ('x', [], 0.0),
    ('the', ['a'], 1.0),
    ('the', ['x'], 0.0),
  ],
)
def test_f1(prediction, answers, score):
  assert f1(prediction, answers) == pytest.approx(score)


def test_bootstrap():
  values = np.arange(1000) % 4 == 0
  result = bootstrap(values)
  assert result['value'] == 25
  # The normal interval: 1.96 sqrt(0.25 0.75 / 1000) = 2.68 percent.
  assert result['low'] == pytest.approx(25 - 2.68, abs=0.4)
  assert result['high'] == pytest.approx(25 + 2.68, abs=0.4)
  assert bootstrap(values) == result
  assert bootstrap(values, seed=1) != result


def test_bootstrap_of_equal_values():
  assert bootstrap([1.0, 1.0]) == {'value': 100, 'low': 100, 'high': 100}


def test_bootstrap_of_nothing():
  with pytest.raises(ValueError, match='expected one a question'):
    bootstrap([])
