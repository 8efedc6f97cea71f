"""Questions with their answers, from JSON lines or TensorFlow Datasets."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from realm_jax.corpus import sources
from realm_jax.text.answers import compile_regex


@dataclasses.dataclass(frozen=True)
class Question:
  """A question.

  Attributes:
    id: from the file, else the line's (or example's) number as text.
    question: its text.
    answers: texts, or regular expressions.
    regex: whether the answers are regular expressions.
  """

  id: str
  question: str
  answers: tuple[str, ...]
  regex: bool


def read_questions(path: str) -> list[Question]:
  """Reads a file of questions, in its order.

  Args:
    path: JSON lines (`.gz` and `.zst` too) of `{"id"?, "question", "answers":
      [...]}` or `{"id"?, "question", "answer_regex": "..." or [...]}`; or
      `tfds:NAME[/CONFIG][:SPLIT]` (default split: train), prepared data with
      a feature `answers` or `answer`.

  Returns:
    At least one question.

  Raises:
    ValueError: a line is not such an object, a regular expression does not
      compile, or there is no line; the message names file and line.
  """
  if path.startswith('tfds:'):
    questions = [
      _question(f'{path} example {number}', str(number), record)
      for number, record in _tfds_records(path)
    ]
  else:
    questions = [
      _question(f'{path}:{line}', str(line), record)
      for line, record in sources.read_json_lines(path)
    ]
  return questions


def _question(where: str, number: str, record: dict[str, Any]) -> Question:
  if 'question' not in record:
    raise ValueError(
      f"{where}: has no field 'question', expected "
      '{"id"?, "question", "answers"} or {"id"?, "question", "answer_regex"}'
    )
  text = record['question']
  if not isinstance(text, str) or not text.strip():
    raise ValueError(f'{where}: question: {text!r}, must be a text')
  regex = 'answer_regex' in record
  field = 'answer_regex' if regex else 'answers'
  if field not in record:
    raise ValueError(f'{where}: has neither answers nor answer_regex')
  answers = record[field]
  if regex and isinstance(answers, str):
    answers = [answers]
  if (
    not isinstance(answers, list | tuple)
    or not answers
    or not all(isinstance(answer, str) and answer for answer in answers)
  ):
    raise ValueError(
      f'{where}: {field}: {answers!r}, must be a list of one text or more'
    )
  if regex:
    for answer in answers:
      try:
        compile_regex(answer)
      except ValueError as error:
        raise ValueError(f'{where}: answer_regex: {error}') from error
  identifier = record.get('id')
  return Question(
    number if identifier is None else str(identifier),
    text,
    tuple(answers),
    regex,
  )


def _tfds_records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Examples as JSON lines would have them."""
  for number, example in sources.read_tfds(path):
    # natural_questions_open calls its list of answers by the singular.
    field = 'answer' if 'answer' in example else 'answers'
    answers = example.get(field)
    record = {'question': example.get('question')}
    if answers is not None:
      record['answers'] = [answers] if isinstance(answers, str) else answers
    yield number, record
