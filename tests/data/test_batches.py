import numpy as np
import pytest

from realm_jax.data.batches import (
  ClosedBookSource,
  QuestionSource,
  closed_book_inputs,
)
from realm_jax.data.labels import AnswerLabels
from realm_jax.data.questions import Question

QUESTIONS = [
  Question('a', 'who saw the river?', ('Bakilu', 'old town'), False),
  Question('b', 'where is the old stone near the green town?', ('x',), False),
  Question('c', 'what?', ('river|stone',), True),
  Question('d', 'when?', ('a green river near a stone town',), False),
  Question('e', 'why?', ('old',), False),
]


def framed(ids, tokenizer, length):
  framed = [tokenizer.cls_id, *ids[: length - 2], tokenizer.sep_id]
  return framed + [0] * (length - len(framed))


def test_question_batches(corpus):
  labels = AnswerLabels.build(QUESTIONS, corpus, 20, 3, 10)
  source = QuestionSource(QUESTIONS, labels, corpus.tokenizer, 10, 9, 0)
  ids = [corpus.tokenizer.encode(q.question)[0] for q in QUESTIONS]
  assert source.counts == {
    'questions': 5,
    'truncated': sum(len(each) > 7 for each in ids),
  }
  assert source.counts['truncated'] > 0
  batch = source[3]
  assert sorted(batch['question_B']) == sorted([*range(5)] * 2)
  for row, question in enumerate(batch['question_B']):
    assert batch['query_BL'][row].tolist() == framed(
      ids[question], corpus.tokenizer, 9
    )
  rows_BC, start_BCS, end_BCS = labels.take(batch['question_B'])
  np.testing.assert_array_equal(batch['gold_row_BC'], rows_BC)
  np.testing.assert_array_equal(batch['gold_start_BCS'], start_BCS)
  np.testing.assert_array_equal(batch['gold_end_BCS'], end_BCS)
  assert all(values.dtype == np.int32 for values in batch.values())
  parts = [
    QuestionSource(QUESTIONS, labels, corpus.tokenizer, 10, 9, 0, index, 2)[3]
    for index in range(2)
  ]
  for name, values in batch.items():
    np.testing.assert_array_equal(
      np.concatenate([part[name] for part in parts]), values
    )


def test_closed_book_batches(corpus):
  tokenizer = corpus.tokenizer
  source = ClosedBookSource(QUESTIONS, tokenizer, 12, 16, 6, 0)
  long = len(tokenizer.encode(QUESTIONS[3].answers[0])[0]) > 6
  assert long
  assert source.counts['questions'] == 3
  assert source.counts['regex'] == source.counts['answers_too_long'] == 1
  possible = {}
  for question in (QUESTIONS[0], QUESTIONS[1], QUESTIONS[4]):
    query = framed(tokenizer.encode(question.question)[0], tokenizer, 16)
    for answer in question.answers:
      ids = tokenizer.encode(answer)[0]
      target = [*ids, tokenizer.sep_id][:6]
      possible.setdefault(tuple(query), []).append(
        target + [0] * (6 - len(target))
      )
  seen = set()
  for step in range(4):
    batch = source[step]
    assert batch['token_BL'].shape == (12, 16 + 7)
    for row, token_L in enumerate(batch['token_BL']):
      end = token_L.tolist().index(tokenizer.sep_id) + 1
      query = token_L[:end].tolist() + [0] * (16 - end)
      target = batch['target_BM'][row].tolist()
      assert target in possible[tuple(query)]
      seen.add((tuple(query), tuple(target)))
      assert (token_L[end : end + 6] == tokenizer.mask_id).all()
      assert token_L[end + 6] == tokenizer.sep_id
      assert not token_L[end + 7 :].any()
      np.testing.assert_array_equal(
        batch['position_BM'][row], np.arange(end, end + 6)
      )
      np.testing.assert_array_equal(
        batch['segment_BL'][row], [0] * end + [1] * 7 + [0] * (16 - end)
      )
      np.testing.assert_array_equal(
        batch['weight_BM'][row], np.array(target) != 0
      )
  assert len(seen) == 4  # every fitting answer is drawn


def test_closed_book_inputs_of_all_questions_in_order(corpus):
  token_QL, segment_QL, position_QM, truncated = closed_book_inputs(
    [question.question for question in QUESTIONS], corpus.tokenizer, 8, 2
  )
  assert token_QL.shape == segment_QL.shape == (5, 11)
  assert position_QM.shape == (5, 2)
  assert truncated > 0
  cut = framed(
    corpus.tokenizer.encode(QUESTIONS[1].question)[0], corpus.tokenizer, 8
  )
  mask, sep = corpus.tokenizer.mask_id, corpus.tokenizer.sep_id
  assert token_QL[1].tolist() == [*cut, mask, mask, sep]


def test_questions_without_a_fitting_answer_are_refused(corpus):
  with pytest.raises(ValueError, match='max_answer_length = 1 wordpieces'):
    ClosedBookSource(QUESTIONS[2:4], corpus.tokenizer, 4, 16, 1, 0)
