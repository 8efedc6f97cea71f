"""The joint text against plain Python."""

import jax
import numpy as np
import pytest

from realm_jax.model import joint

CLS, SEP = 2, 3


def pad(ids, length):
  return ids + [0] * (length - len(ids))


def by_hand(query, document, length):
  """Token ids, segments, start and end of the body, of lists of ids."""
  body = document[document.index(SEP) + 1 : -1] if SEP in document else []
  body = body[: length - len(query) - 1]
  token = [*query, *body, SEP]
  segment = [0] * len(query) + [1] * (len(body) + 1)
  start = len(query)
  return pad(token, length), pad(segment, length), start, start + len(body)


def random_document(rng, length):
  title = int(rng.integers(0, 4))
  body = int(rng.integers(0, length - title - 2))
  words = rng.integers(5, 99, title + body).tolist()
  return [CLS, *words[:title], SEP, *words[title:], SEP]


@pytest.mark.parametrize('length', [9, 14, 40])
@pytest.mark.parametrize('dtype', [np.int32, np.uint16])
def test_matches_plain_python(length, dtype):
  rng = np.random.default_rng(length)
  queries, documents = [], []
  for _ in range(20):
    words = rng.integers(5, 99, rng.integers(0, 7)).tolist()
    queries.append([CLS, *words, SEP])
    # A text, the null document, and a place that search could not fill.
    documents.append([random_document(rng, 18), [CLS, SEP, SEP], []])
  query = np.array([pad(q, 8) for q in queries], dtype)
  document = np.array([[pad(d, 18) for d in row] for row in documents], dtype)
  outputs = jax.jit(joint.join, static_argnums=(2, 3))(
    query, document, length, SEP
  )
  for b, row in enumerate(documents):
    for k, one in enumerate(row):
      expected = by_hand(queries[b], one, length)
      for output, value in zip(outputs, expected, strict=True):
        assert output[b, k].tolist() == value
  assert all(output.dtype == np.int32 for output in outputs)


def test_a_cut_body_ends_in_sep():
  token, segment, start, end = joint.join(
    np.array([[CLS, 7, SEP]]),
    np.array([[[CLS, 8, SEP, 10, 11, 12, 13, SEP]]]),
    6,
    SEP,
  )
  assert token.tolist() == [[[CLS, 7, SEP, 10, 11, SEP]]]
  assert segment.tolist() == [[[0, 0, 0, 1, 1, 1]]]
  assert (start.tolist(), end.tolist()) == ([[3]], [[5]])


def test_no_room_for_the_query_is_refused():
  with pytest.raises(ValueError, match=r'joint length: 8, .* query length 8'):
    joint.join(np.ones((1, 8), int), np.ones((1, 1, 9), int), 8, SEP)
