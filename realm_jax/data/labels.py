"""Where the answers of questions stand in a corpus, made ahead of training.

Normalised and regex matching run on the host alone; a training step looks its
retrieved rows up in sorted lists (ORQA section 4).
"""

import bisect
from collections.abc import Iterator, Sequence

import numpy as np

from realm_jax.data.patterns import PatternIndex
from realm_jax.data.questions import Question
from realm_jax.parallel import processes
from realm_jax.text.answers import AnswerIndex, find_answers

NO_ROW = 2**31 - 1  # sorts behind every row

_CHUNK = 4096  # blocks read at a time

# Question, place of the block in its chunk, characters of its text (None: of
# a regular expression, still to be found).
_Match = tuple[int, int, list[tuple[int, int]] | None]


class AnswerLabels:
  """Gold rows of each question, and the answers' wordpieces in them.

  Attributes:
    counts: `questions`; `questions_without_answer` in the corpus;
      `questions_capped`, with more gold rows than max_rows; `rows_capped`,
      left out by that (the later rows; the loss leaves out all rows behind
      the last one listed); `rows_without_span`, gold rows of
      which every answer is too wide; `spans_too_wide` for the reader;
      `spans_capped`, beyond max_spans in a row.
  """

  def __init__(
    self,
    rows: Sequence[Sequence[int]],
    spans: Sequence[Sequence[Sequence[tuple[int, int]]]],
    max_rows: int,
    max_spans: int,
    counts: dict[str, int],
  ):
    """See `build`; spans are of each row of each question."""
    self._max_rows = max_rows
    self._offsets = np.cumsum([0, *map(len, rows)])
    # One row more, which absent ones are read from.
    total = int(self._offsets[-1])
    self._rows = np.full(total + 1, NO_ROW, np.int32)
    self._spans = np.full((total + 1, max_spans, 2), -1, np.int32)
    place = 0
    for question_rows, question_spans in zip(rows, spans, strict=True):
      for row, row_spans in zip(question_rows, question_spans, strict=True):
        self._rows[place] = row
        if row_spans:
          self._spans[place, : len(row_spans)] = row_spans
        place += 1
    self.counts = counts

  @classmethod
  def build(
    cls,
    questions: Sequence[Question],
    corpus,
    max_rows: int,
    max_spans: int,
    max_span_width: int,
  ) -> 'AnswerLabels':
    """Reads the text of the corpus once.

    Plain answers match as `normalized`, regular expressions as `regex`.

    Args:
      questions: the questions.
      corpus: a Corpus, Z; removed rows are passed over.
      max_rows: C, most gold rows of a question.
      max_spans: S, most answers in a row.
      max_span_width: wordpieces that the reader can predict; wider answers
        give a gold row and no span.
    """
    builder = _Builder(questions, max_rows, max_spans, max_span_width)
    for start in range(0, corpus.num_blocks, _CHUNK):
      processes.beat(f'looking for answers, row {start}')
      stop = min(start + _CHUNK, corpus.num_blocks)
      row_n = start + np.flatnonzero(corpus.alive(start, stop))
      texts = corpus.texts(start, stop)
      builder.add(
        row_n.tolist(),
        [texts[row - start] for row in row_n],
        corpus.tokenizer,
      )
    return cls(
      builder.rows, builder.spans, max_rows, max_spans, builder.counts()
    )

  def take(
    self, question_B: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of some questions.

    Args:
      question_B: places in the list of questions.

    Returns:
      gold_row_BC: ascending, padded with NO_ROW; gold_start_BCS and
      gold_end_BCS: first and last (inclusive) wordpiece of each answer in
      the row's body (0 is the body's first), padded with -1. All int32.
    """
    place_BC = self._offsets[question_B][:, None] + np.arange(self._max_rows)
    known_BC = place_BC < self._offsets[question_B + 1][:, None]
    place_BC = np.where(known_BC, place_BC, len(self._rows) - 1)
    span_BCS2 = self._spans[place_BC]
    return self._rows[place_BC], span_BCS2[..., 0], span_BCS2[..., 1]


class _Builder:
  """Collects labels chunk by chunk, in the order of the rows."""

  def __init__(
    self,
    questions: Sequence[Question],
    max_rows: int,
    max_spans: int,
    max_span_width: int,
  ):
    self._questions = questions
    self._max_rows = max_rows
    self._max_spans = max_spans
    self._max_span_width = max_span_width
    # Different questions share answers: each is looked for once.
    self._askers: dict[bool, dict[str, list[int]]] = {False: {}, True: {}}
    for number, question in enumerate(questions):
      for answer in dict.fromkeys(question.answers):
        askers = self._askers[question.regex].setdefault(answer, [])
        askers.append(number)
    self._plain = AnswerIndex(list(self._askers[False]))
    self._plain_askers = list(self._askers[False].values())
    self._patterns = PatternIndex(list(self._askers[True]))
    self._pattern_askers = list(self._askers[True].values())
    self.rows: list[list[int]] = [[] for _ in questions]
    self.spans: list[list[list[tuple[int, int]]]] = [[] for _ in questions]
    self._gold = np.zeros(len(questions), np.int64)
    self._spans_too_wide = self._spans_capped = self._rows_without_span = 0

  def add(self, rows: list[int], texts: list[str], tokenizer) -> None:
    """Takes the blocks of a chunk."""
    wanted: dict[int, list[tuple[int, list[tuple[int, int]]]]] = {}
    for question, place, characters in self._matches(texts):
      self._gold[question] += 1
      if self._gold[question] > self._max_rows:
        continue
      if characters is None:
        answers = self._questions[question].answers
        characters = find_answers(texts[place], answers, 'regex')
      wanted.setdefault(place, []).append((question, characters))
    places = sorted(wanted)
    encodings = tokenizer.encode_batch([texts[place] for place in places])
    for place, (_, offsets) in zip(places, encodings, strict=True):
      starts = [start for start, _ in offsets]
      ends = [end for _, end in offsets]
      for question, characters in wanted[place]:
        self.rows[question].append(rows[place])
        self.spans[question].append(self._wordpieces(characters, starts, ends))

  def _matches(self, texts: list[str]) -> Iterator[_Match]:
    """Each question and block with an answer of it, blocks ascending."""
    # Splitting into words costs more than finding: not for regexes alone.
    for place, text in enumerate(texts if self._plain_askers else ()):
      found: dict[int, set[tuple[int, int]]] = {}
      for answer, start, end in self._plain.find(text):
        for question in self._plain_askers[answer]:
          found.setdefault(question, set()).add((start, end))
      for question, characters in found.items():
        yield question, place, sorted(characters)
    by_regex = set()
    for pattern, place in self._patterns.find(texts):
      for question in self._pattern_askers[pattern]:
        by_regex.add((place, question))
    for place, question in sorted(by_regex):
      yield question, place, None

  def _wordpieces(
    self,
    characters: list[tuple[int, int]],
    starts: list[int],
    ends: list[int],
  ) -> list[tuple[int, int]]:
    """First and last wordpiece of each answer that the reader can give."""
    spans = []
    for start, end in characters:
      first = bisect.bisect_right(ends, start)
      last = bisect.bisect_left(starts, end) - 1
      if last < first:
        continue  # characters that the tokenizer drops
      if last - first >= self._max_span_width:
        self._spans_too_wide += 1
      elif (first, last) not in spans:
        spans.append((first, last))
    self._rows_without_span += not spans
    self._spans_capped += max(len(spans) - self._max_spans, 0)
    return spans[: self._max_spans]

  def counts(self) -> dict[str, int]:
    beyond_Q = np.maximum(self._gold - self._max_rows, 0)
    return {
      'questions': len(self._questions),
      'questions_without_answer': int((self._gold == 0).sum()),
      'questions_capped': int((beyond_Q > 0).sum()),
      'rows_capped': int(beyond_Q.sum()),
      'rows_without_span': self._rows_without_span,
      'spans_too_wide': self._spans_too_wide,
      'spans_capped': self._spans_capped,
    }
