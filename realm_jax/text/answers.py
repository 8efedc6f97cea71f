"""Answers in text: the official normalisation, and where answers stand.

The four ways to match an answer are named and never mixed:

  normalized  lower case, no punctuation, no articles, single spaces (SQuAD);
              the answer's words must stand there, one after the other
  raw         the answer's characters as they are
  token       the answer's wordpieces, one after the other
  regex       a regular expression, upper and lower case alike (CuratedTREC)
"""

import bisect
import re
import string
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from realm_jax.text.wordpiece import WordPiece

Mode = Literal['normalized', 'raw', 'token', 'regex']

_DROP_PUNCTUATION = str.maketrans('', '', string.punctuation)
_ARTICLES = re.compile(r'\b(a|an|the)\b')
_CHUNK = re.compile(r'\S+')


def normalize(text: str) -> str:
  """The official normalisation of SQuAD, which open QA took over.

  Lower case, then ASCII punctuation removed, then the words a, an and the
  removed, then white space made single.
  """
  text = text.lower().translate(_DROP_PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def find_answers(
  text: str,
  answers: Sequence[str],
  mode: Mode,
  tokenizer: WordPiece | None = None,
) -> list[tuple[int, int]]:
  """Every occurrence of every answer in a text.

  In mode `normalized` an answer may end where a word of the text has
  punctuation (`Obama` in `Obama's`), but not within a number (`5` in `3.5`);
  the span leaves out articles and punctuation at its ends, and its text has
  the answer's normal form.

  Args:
    text: the text to search.
    answers: answers, or regular expressions in mode `regex`. An answer of which
      normalisation leaves nothing is nowhere.
    mode: how to match, see the module.
    tokenizer: for mode `token`.

  Returns:
    [start, end) characters, sorted, each once, none empty.

  Raises:
    ValueError: an answer is no regular expression in mode `regex`, or mode
      `token` has no tokenizer.
  """
  return sorted(set(_matches(text, answers, mode, tokenizer)))


def has_answer(
  text: str,
  answers: Sequence[str],
  mode: Mode,
  tokenizer: WordPiece | None = None,
) -> bool:
  """Whether `find_answers` finds anything."""
  return next(_matches(text, answers, mode, tokenizer), None) is not None


@lru_cache(maxsize=4096)
def compile_regex(pattern: str) -> re.Pattern[str]:
  """An answer's regular expression, upper and lower case alike.

  Raises:
    ValueError: the pattern is no regular expression.
  """
  try:
    return re.compile(pattern, re.IGNORECASE)
  except (re.error, OverflowError, RecursionError) as error:
    raise ValueError(
      f'answer {pattern!r}: is not a regular expression: {error}'
    ) from error


class AnswerIndex:
  """Many answers, to be found together in one pass over a text.

  Matching is that of mode `normalized`; the time for a text hardly grows with
  the number of answers.
  """

  def __init__(self, answers: Sequence[str]) -> None:
    """Takes the answers; `find` gives their places in this sequence."""
    # First word -> [(the words after it, place of the answer)].
    self._by_word: dict[str, list[tuple[list[str], int]]] = {}
    for place, answer in enumerate(answers):
      words = normalize(answer).split()
      if words:
        self._by_word.setdefault(words[0], []).append((words[1:], place))
    self._longest = max(map(len, self._by_word), default=0)

  def find(self, text: str) -> Iterator[tuple[int, int, int]]:
    """Yields (place of the answer, start, end) of every occurrence."""
    words = _split_words(text)
    by_word = self._by_word
    for i, word in enumerate(words):
      if word.inner is None:
        if word.normal in by_word:
          yield from self._follow(words, i, 0, len(word.normal))
        continue
      _, begins, ends = word.inner
      for begin in begins:
        for j in range(bisect.bisect(ends, begin), len(ends)):
          end = ends[j]
          if end - begin > self._longest:
            break
          if word.normal[begin:end] in by_word:
            yield from self._follow(words, i, begin, end)

  def _follow(
    self, words: list['_Word'], i: int, begin: int, end: int
  ) -> Iterator[tuple[int, int, int]]:
    """Occurrences of answers whose first word is part of words[i]."""
    word = words[i]
    for rest, place in self._by_word[word.normal[begin:end]]:
      if not rest:
        yield place, word.character(begin), word.character(end - 1) + 1
        continue
      last = i + len(rest)
      if (
        end == len(word.normal)
        and last < len(words)
        and words[last].begins_with(rest[-1])
        and all(
          words[i + 1 + j].normal == middle
          for j, middle in enumerate(rest[:-1])
        )
      ):
        after = words[last].character(len(rest[-1]) - 1) + 1
        yield place, word.character(begin), after


class _Word(NamedTuple):
  """A word of the normal form, and where it stands in the text."""

  normal: str
  start: int
  # None for a word without punctuation; else the place in the text of each
  # character, and where an answer may begin and end in `normal`.
  inner: tuple[list[int], list[int], list[int]] | None

  def character(self, i: int) -> int:
    return self.start + i if self.inner is None else self.inner[0][i]

  def begins_with(self, answer: str) -> bool:
    if self.normal == answer:
      return True
    return (
      self.inner is not None
      and self.normal.startswith(answer)
      and len(answer) in self.inner[2]
    )


def _matches(
  text: str,
  answers: Sequence[str],
  mode: Mode,
  tokenizer: WordPiece | None,
) -> Iterator[tuple[int, int]]:
  if mode == 'normalized':
    for _, start, end in _index(tuple(answers)).find(text):
      yield start, end
  elif mode == 'raw':
    for answer in filter(None, answers):
      start = text.find(answer)
      while start >= 0:
        yield start, start + len(answer)
        start = text.find(answer, start + 1)
  elif mode == 'token':
    if tokenizer is None:
      raise ValueError('mode token: needs a tokenizer to find answers')
    ids, offsets = tokenizer.encode(text)
    for answer in answers:
      wanted, _ = tokenizer.encode(answer)
      for i in range(len(ids) - len(wanted) + 1 if wanted else 0):
        if ids[i : i + len(wanted)] == wanted:
          yield offsets[i][0], offsets[i + len(wanted) - 1][1]
  elif mode == 'regex':
    for answer in answers:
      for found in compile_regex(answer).finditer(text):
        if found.end() > found.start():
          yield found.span()
  else:
    raise ValueError(
      f'answer-match mode {mode!r}: choose from {", ".join(get_args(Mode))}'
    )


@lru_cache(maxsize=1024)
def _index(answers: tuple[str, ...]) -> AnswerIndex:
  return AnswerIndex(answers)


def _split_words(text: str) -> list[_Word]:
  """The words of `normalize(text)`, with their places."""
  words = []
  for found in _CHUNK.finditer(text):
    chunk = found[0]
    if chunk.isalnum():
      core, start = chunk, found.start()
    else:
      bare = chunk.lstrip(string.punctuation)
      start = found.end() - len(bare)
      core = bare.rstrip(string.punctuation)
      if not core.isalnum():
        words += _split_chunk(core, start)
        continue
    normal = core.lower()
    # A letter whose lower case is longer has no one place for each character.
    if len(normal) != len(core):
      words += _split_chunk(core, start)
    elif normal not in ('a', 'an', 'the'):
      words.append(_Word(normal, start, None))
  return words


def _split_chunk(chunk: str, start: int) -> list[_Word]:
  """The words of a text without white space but with inner punctuation."""
  characters, places = [], []
  for i, character in enumerate(chunk):
    if character not in string.punctuation:
      lower = character.lower()
      characters.append(lower)
      places += [i] * len(lower)
  normal = ''.join(characters)
  words, first = [], 0
  for article in [*_ARTICLES.finditer(normal), None]:
    last = article.start() if article else len(normal)
    if first < last:
      words.append(_inner_word(normal, places, first, last, chunk, start))
    first = article.end() if article else last
  return words


def _inner_word(
  normal: str, places: list[int], first: int, last: int, chunk: str, start: int
) -> _Word:
  begins, ends = [0], []
  for i in range(first + 1, last):
    left, right = places[i - 1], places[i]
    between = chunk[left + 1 : right]
    if left == right or (
      not between and chunk[left].isalnum() and chunk[right].isalnum()
    ):
      continue
    # 3.5, 1,234 and 10:30 are one number.
    if between in ('.', ',', ':') and (
      chunk[left].isdigit() and chunk[right].isdigit()
    ):
      continue
    begins.append(i - first)
    ends.append(i - first)
  ends.append(last - first)
  inner = ([start + place for place in places[first:last]], begins, ends)
  return _Word(normal[first:last], start, inner)
