"""Many regular expressions over many texts.

Most patterns of CuratedTREC spell out some characters that every match must
hold. Looking for those first is many times faster than trying each pattern
on each text.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from realm_jax.text.answers import compile_regex

# Characters that `re` takes for these letters when case is ignored, and that
# str.lower leaves as they are (or makes two of).
_FOLD = str.maketrans({'\u0130': 'i', '\u0131': 'i', '\u017f': 's'})
# Parts of a pattern at which a run of required characters ends.
_CLASS = re.compile(r'\[\^?\]?(?:\\.|[^\]\\])*\]', re.DOTALL)
_REPEAT = re.compile(r'\{[^}]*\}')


class PatternIndex:
  """Finds which of many regular expressions match in which texts.

  Matching is that of answer mode `regex`: anywhere, upper and lower case
  alike.
  """

  def __init__(self, patterns: Sequence[str]):
    """Takes the patterns; `find` gives their places in this sequence.

    Raises:
      ValueError: a pattern does not compile.
    """
    self._patterns = [
      (compile_regex(pattern), required(pattern)) for pattern in patterns
    ]

  def find(self, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yields (place of the pattern, place of the text) of every match."""
    folded = [text.translate(_FOLD).lower() for text in texts]
    starts = list(accumulate((len(text) + 1 for text in folded), initial=0))
    joined = '\n'.join(folded)  # no needle holds a line break
    for place, (pattern, needles) in enumerate(self._patterns):
      if needles is None:
        found = range(len(texts))
      else:
        found = set()
        for needle in needles:
          found.update(_holders(joined, needle, starts))
      for text in sorted(found):
        # An empty match is no answer, but another one may follow.
        first = pattern.search(texts[text])
        if first and (
          first[0] or any(map(_text, pattern.finditer(texts[text])))
        ):
          yield place, text


def _holders(joined: str, needle: str, starts: list[int]) -> Iterator[int]:
  """Numbers of the texts in `joined` that hold the needle."""
  position = joined.find(needle)
  while position >= 0:
    text = bisect_right(starts, position) - 1
    yield text
    position = joined.find(needle, starts[text + 1])


def required(pattern: str) -> list[str] | None:
  """Texts in lower case of which every match holds one at least.

  Args:
    pattern: a regular expression.

  Returns:
    One for each alternative of the pattern, or None when an alternative has
    none that is sure.
  """
  needles, best, run, depth, i = [], '', '', 0, 0
  # What is not plain enough to be sure: flags, look-around, comments, back
  # references, escapes that take arguments (\x41).
  if re.search(r'\(\?(?!:)|\\(?![sSdDwWbB]|[^A-Za-z0-9])', pattern):
    return None
  while i <= len(pattern):
    char = pattern[i : i + 1]
    step = 1
    if char and depth == 0 and (char.isalnum() or char in ' ,\'"-:;/%&'):
      if char.isascii():
        run += char.lower()
        i += 1
        continue
    elif char and char in '?*{':
      run = run[:-1]  # the character before may be absent
      step = _width(_REPEAT, pattern, i)
    elif char == '\\':
      step = 2
    elif char == '[':
      step = _width(_CLASS, pattern, i)
    elif char == '(':
      depth += 1
    elif char == ')':
      depth -= 1
    best, run = max(best, run, key=len), ''
    if depth == 0 and char in ('|', ''):
      if not best:
        return None
      needles.append(best)
      best = ''
    i += step
  return needles


def _width(part: re.Pattern[str], pattern: str, start: int) -> int:
  """Length of the part of the pattern that starts there, 1 if none does."""
  found = part.match(pattern, start)
  return len(found[0]) if found else 1


def _text(found: re.Match[str]) -> str:
  return found[0]
