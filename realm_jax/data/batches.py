"""Questions to batches: for retrieval and reading, and closed book."""

from collections.abc import Sequence

import numpy as np

from realm_jax.data import order
from realm_jax.data.labels import AnswerLabels
from realm_jax.data.questions import Question


class QuestionSource:
  """Questions with where their answers stand; `source[step]` is a batch.

  A batch holds, int32, C and S the widths of the labels:
    query_BL: `[CLS] question [SEP]`, padded with 0.
    gold_row_BC: rows of Z with an answer, ascending, padded with 2**31 - 1.
    gold_start_BCS, gold_end_BCS: first and last wordpiece of each answer in
      the row's body, padded with -1.
    question_B: place in the list of questions.

  Attributes:
    counts: `questions`, `truncated` to query_length.
    steps_per_epoch: rounded up.
  """

  def __init__(
    self,
    questions: Sequence[Question],
    labels: AnswerLabels,
    tokenizer,
    batch_size: int,
    query_length: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Encodes all questions.

    Args:
      questions: at least one.
      labels: of the same questions.
      tokenizer: a WordPiece, the corpus's.
      batch_size: global.
      query_length: L, [CLS] and [SEP] included.
      seed: of the run.
      process_index: which slice of the batch this source makes.
      process_count: slices of a batch.

    Raises:
      ValueError: the batch cannot be sliced.
    """
    self._labels = labels
    self._ids = [question.id for question in questions]
    self._query_QL, truncated = encode_questions(
      [question.question for question in questions], tokenizer, query_length
    )
    self.counts = {'questions': len(questions), 'truncated': truncated}
    self._order = order.Order(
      len(questions), batch_size, seed, process_index, process_count
    )
    self.steps_per_epoch = self._order.steps_per_epoch

  def ids(self, step: int) -> list[str]:
    """Which questions a step's batch is made of."""
    return [self._ids[number] for number in self._order.visit(step)[1]]

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    _, question_B = self._order.visit(step)
    gold_row_BC, gold_start_BCS, gold_end_BCS = self._labels.take(question_B)
    return {
      'query_BL': self._query_QL[question_B],
      'gold_row_BC': gold_row_BC,
      'gold_start_BCS': gold_start_BCS,
      'gold_end_BCS': gold_end_BCS,
      'question_B': question_B.astype(np.int32),
    }


class ClosedBookSource:
  """Questions answered by filling masks, without retrieval.

  The target is one answer of the question, drawn at each visit, followed by
  [SEP]; an answer of exactly A wordpieces has no place for [SEP] left.
  Questions that have only longer answers, or regular expressions, are left
  out.

  A batch holds token_BL and segment_BL as closed_book_inputs gives them, and
  position_BM and target_BM (int32), weight_BM (float32), M = A.

  Attributes:
    counts: `questions` used; left out `regex` and `answers_too_long`;
      `truncated` to query_length.
    steps_per_epoch: rounded up.
  """

  def __init__(
    self,
    questions: Sequence[Question],
    tokenizer,
    batch_size: int,
    query_length: int,
    max_answer_length: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Encodes all questions and answers.

    Args:
      questions: the questions.
      tokenizer: a WordPiece.
      batch_size: global.
      query_length: of `[CLS] question [SEP]`.
      max_answer_length: A, masks.
      seed: of the run.
      process_index: which slice of the batch this source makes.
      process_count: slices of a batch.

    Raises:
      ValueError: no question can be used, or the batch cannot be sliced.
    """
    plain = [question for question in questions if not question.regex]
    used, targets, offsets = [], [], [0]
    for question in plain:
      pieces = [tokenizer.encode(answer)[0] for answer in question.answers]
      fitting = [ids for ids in pieces if 0 < len(ids) <= max_answer_length]
      if fitting:
        used.append(question)
        targets += [
          _pad([*ids, tokenizer.sep_id][:max_answer_length], max_answer_length)
          for ids in fitting
        ]
        offsets.append(len(targets))
    if not used:
      raise ValueError(
        f'questions: none of {len(questions)} has a plain answer of at most '
        f'max_answer_length = {max_answer_length} wordpieces'
      )
    self._ids = [question.id for question in used]
    self._target_TM = np.array(targets, np.int32)
    self._offsets = np.array(offsets)
    self._token_QL, self._segment_QL, self._position_QM, truncated = (
      closed_book_inputs(
        [question.question for question in used],
        tokenizer,
        query_length,
        max_answer_length,
      )
    )
    self.counts = {
      'questions': len(used),
      'regex': len(questions) - len(plain),
      'answers_too_long': len(plain) - len(used),
      'truncated': truncated,
    }
    self._order = order.Order(
      len(used), batch_size, seed, process_index, process_count
    )
    self.steps_per_epoch = self._order.steps_per_epoch

  def ids(self, step: int) -> list[str]:
    """Which questions a step's batch is made of."""
    return [self._ids[number] for number in self._order.visit(step)[1]]

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    _, question_B = self._order.visit(step)
    random_B = self._order.random(step, 1)[:, 0]
    first_B = self._offsets[question_B]
    count_B = self._offsets[question_B + 1] - first_B
    target_BM = self._target_TM[first_B + (random_B * count_B).astype(np.int64)]
    return {
      'token_BL': self._token_QL[question_B],
      'segment_BL': self._segment_QL[question_B],
      'position_BM': self._position_QM[question_B],
      'target_BM': target_BM,
      'weight_BM': (target_BM != 0).astype(np.float32),
    }


def encode_questions(
  texts: Sequence[str], tokenizer, query_length: int
) -> tuple[np.ndarray, int]:
  """`[CLS] question [SEP]`, int32 [Q, query_length] padded with 0.

  Returns:
    The array, and how many questions were cut to fit.
  """
  query_QL = np.zeros((len(texts), query_length), np.int32)
  truncated = 0
  for query_L, (ids, _) in zip(
    query_QL, tokenizer.encode_batch(list(texts)), strict=True
  ):
    truncated += len(ids) > query_length - 2
    framed = [tokenizer.cls_id, *ids[: query_length - 2], tokenizer.sep_id]
    query_L[: len(framed)] = framed
  return query_QL, truncated


def closed_book_inputs(
  texts: Sequence[str], tokenizer, query_length: int, max_answer_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
  """`[CLS] question [SEP] [MASK]*A [SEP]` of each question.

  Returns:
    token_QL, segment_QL (1 behind the first [SEP], 0 in padding), L =
    query_length + A + 1; position_QM, the places of the masks, M = A; all
    int32; and how many questions were cut to fit.
  """
  query_QL, truncated = encode_questions(texts, tokenizer, query_length)
  token_QL = np.pad(query_QL, ((0, 0), (0, max_answer_length + 1)))
  first_Q1 = (query_QL != 0).sum(1, keepdims=True)
  position_QM = first_Q1 + np.arange(max_answer_length)
  last_Q1 = first_Q1 + max_answer_length
  np.put_along_axis(token_QL, position_QM, tokenizer.mask_id, 1)
  np.put_along_axis(token_QL, last_Q1, tokenizer.sep_id, 1)
  place_L = np.arange(token_QL.shape[1])
  segment_QL = (place_L >= first_Q1) & (place_L <= last_Q1)
  return (
    token_QL,
    segment_QL.astype(np.int32),
    position_QM.astype(np.int32),
    truncated,
  )


def _pad(ids: list[int], length: int) -> list[int]:
  return ids + [0] * (length - len(ids))
