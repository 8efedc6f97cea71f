"""Finds the salient spans of a sentence: names, numbers and dates.

The paper (section 3.4) masks what a named-entity tagger finds, and dates that a
regular expression finds. `Tagger` is what the corpus asks of a tagger;
`RuleTagger` is the one that comes along: rules only, nothing to download.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from realm_jax.text.openers import (
  ENDINGS,
  FUNCTION_WORDS,
  NUMBERS,
  OPENERS,
  TITLE_WORDS,
)


class Tagger(Protocol):
  """Marks the spans of a sentence that are worth masking.

  Attributes:
    name: tells taggers apart; a corpus records whose spans it holds.
  """

  name: str

  def __call__(self, sentence: str) -> list[tuple[int, int]]:
    """Returns [start, end) characters of the spans, sorted and disjoint."""
    ...


def _capital_letters() -> str:
  """Capitals of all alphabets, to stand in a character class."""
  letters = map(chr, range(0xC0, 0x2C00))
  return 'A-Z' + ''.join(
    letter for letter in letters if unicodedata.category(letter) in ('Lu', 'Lt')
  )


_CAPITAL = _capital_letters()

# Dates.
_MONTH = (
  r'(?:January|February|March|April|May|June|July|August|September|October|'
  r'November|December|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?)'
)
_DAY = r'\d{1,2}(?:st|nd|rd|th)?'
_YEAR = r'\d{3,4}(?!\w)'
_ERA = r'(?: ?(?:BCE?|CE|AD|B\.C\.|A\.D\.)(?!\w))'
_CENTURY = rf'[ -]centur(?:y|ies)(?!\w){_ERA}?'
_ORDINAL = (
  r'(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|'
  r'eleventh|twelfth|thirteenth|fourteenth|fifteenth|sixteenth|seventeenth|'
  r'eighteenth|nineteenth|twentieth|twenty-first)'
)
_DIGIT_DATE = '|'.join(
  [
    rf'{_DAY}(?: of)? {_MONTH}(?!\w)(?:,? {_YEAR})?',  # 12 March 1984
    r'\d{4}-\d{2}-\d{2}(?!\w)',
    r'\d{1,2}/\d{1,2}/\d{2,4}(?!\w)',
    r'\d{1,3}0s(?!\w)',  # 1980s
    rf'\d{{1,2}}(?:st|nd|rd|th){_CENTURY}',
    rf'\d{{1,4}}{_ERA}',  # 44 BC
  ]
)
_MONTH_DATE = (  # March 12, 1984; March 1984
  rf'{_MONTH} (?:{_DAY}(?!\w)(?:,? {_YEAR})?|(?:of )?\d{{4}}(?!\w))'
  rf'|AD \d{{1,4}}(?!\w)'
)

# Numbers.
_SCALE = r'(?: (?:hundred|thousand|million|billion|trillion)(?!\w))'
_DIGITS = (
  r'(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?'
  rf'(?:%|(?:st|nd|rd|th)(?!\w)|{_SCALE})?(?!\w|[.,]\d)'
)
_ONES = 'one|two|three|four|five|six|seven|eight|nine'
_TENS = 'twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety'
_NUMBER_WORD = (  # `one` is a pronoun too often
  rf'(?:(?:{_TENS})(?:-(?:{_ONES}))?|two|three|four|five|six|seven|eight|nine|'
  r'ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|'
  rf'nineteen){_SCALE}?(?![\w-])'
)

# Names.
_INITIALS = rf'(?:[{_CAPITAL}]\.)+(?:[{_CAPITAL}](?!\w))?'
_SHORT = (
  r'(?:St|Mt|Ft|Dr|Mr|Mrs|Ms|Jr|Sr|Prof|Rev|Gen|Col|Lt|Capt|Sgt|Gov|Sen)\.'
  r'(?=[ ,])'
)
# O'Brien, Jean-Luc, AT&T, F-16; but not the 's of a possessive.
_PLAIN = rf"[{_CAPITAL}]\w*(?:[-&][{_CAPITAL}0-9]\w*|['\u2019](?!s\b)\w{{2,}})*"
_WORD = rf"(?:{_INITIALS}|{_SHORT}|(?:al-|el-|d['\u2019])?{_PLAIN})"
# What stands between the words of one name.
_LINK = (
  r'(?: (?:(?:&|of the|of|for the|for|the|de la|de los|de las|de|del|'
  r'della|di|da|dos|do|du|des|van der|van den|van de|van|von der|von|zu|den|'
  r'der|le|la|el|al|bin|ibn|y) )?|, (?=[JS]r\b))'
)
# Apollo 11, but not `Germany 3 million`.
_TAIL = rf'(?: \d{{1,3}}(?!\w|[-/.,\u2013]\d|%| {_MONTH}|{_SCALE}))?'
_NAME = rf'{_WORD}(?:{_LINK}(?!{_MONTH} \d){_WORD})*{_TAIL}'

# Each branch is entered by the look of its first character: twice as fast.
_SPAN = re.compile(
  r'[^\w.](?:'
  rf'(?=\d)({_DIGIT_DATE}|{_DIGITS})|'
  rf'(?=[{_CAPITAL}])(?:({_MONTH_DATE})|(?P<name>{_NAME}))|'
  rf'(?=[efnst])({_ORDINAL}{_CENTURY}|{_NUMBER_WORD}))'
)
_FIRST = re.compile(r'\w')
_TITLE = re.compile(
  r'(?:(?:Vice[ -]|Prime |Deputy )?(?:President|Minister|Senator|Governor|'
  r'Congress(?:wo)?man|Representative|Professor|Colonel|Captain|Lieutenant|'
  r'Sergeant|Brigadier|Chancellor|Secretary|Mayor|Ambassador)|'
  rf'(?:Mr|Mrs|Ms|Dr|Prof|Gov|Sen)\.?) (?=[{_CAPITAL}])'
)
# In lower case all words that `_trim` may take off a name inside a sentence, or
# that may begin a _TITLE. Most names begin with none, and need not be asked.
_FRONTS = FUNCTION_WORDS | TITLE_WORDS | {'vice', 'prime', 'deputy'}
_FRONTS |= {f'vice-{word}' for word in TITLE_WORDS}
_FRONTS |= {f'{word}.' for word in _FRONTS}


class RuleTagger:
  """Names by their capitals; numbers and dates in their common forms."""

  name = 'rules-1'

  def __call__(self, sentence: str) -> list[tuple[int, int]]:
    """See `Tagger`."""
    _, starts, ends = self.tag_all([sentence]).tolist()
    return list(zip(starts, ends, strict=True))

  def tag_all(self, sentences: Sequence[str]) -> np.ndarray:
    """See `tag_all`."""
    # No span holds a line break, so that all sentences are searched in one go.
    # One in front too, since a span begins after a character of no word.
    text = '\n' + '\n'.join(sentences)
    size_S = np.fromiter(map(len, sentences), np.int64, len(sentences)) + 1
    begin_S = 1 + size_S.cumsum() - size_S
    firsts = (_FIRST.search(text, begin) for begin in begin_S.tolist())
    openings = {found.start() for found in firsts if found}
    starts, ends = [], []
    for found in _SPAN.finditer(text):
      start, end = found.span()
      start += 1
      if found.lastgroup == 'name':
        opens = start in openings
        word = text[start:end].partition(' ')[0]
        if opens or word.lower() in _FRONTS:
          start = _trim(text, start, end, opens)
          if start == end:
            continue
      starts.append(start)
      ends.append(end)
    places = np.array([starts, ends], np.int64)
    sentence_X = begin_S.searchsorted(places[0], 'right') - 1
    return np.stack([sentence_X, *(places - begin_S[sentence_X])])


def tag_all(tagger: Tagger, sentences: Sequence[str]) -> np.ndarray:
  """Tags many sentences.

  Args:
    tagger: any; a RuleTagger is much faster than sentence by sentence.
    sentences: what to tag.

  Returns:
    int64 [3, X]: for each span the number of its sentence, and its start and
    end (exclusive) in characters of the sentence.
  """
  if isinstance(tagger, RuleTagger):
    return tagger.tag_all(sentences)
  spans = [
    (number, start, end)
    for number, sentence in enumerate(sentences)
    for start, end in tagger(sentence)
  ]
  return np.array(spans, np.int64).reshape(-1, 3).T


def _trim(sentence: str, start: int, end: int, opens: bool) -> int:
  """Where the name in capitalised words begins; `end` if there is none.

  Args:
    sentence: the sentence.
    start: start of the first word.
    end: end of the last word.
    opens: whether the first word opens the sentence: then its capital means
      nothing.
  """
  while start < end:
    title = _TITLE.match(sentence, start, end)
    if title:
      start, opens = title.end(), False
      continue
    space = sentence.find(' ', start, end)
    word = sentence[start : space if space >= 0 else end]
    lower = word.lower()
    common = lower in OPENERS or (word.istitle() and lower.endswith(ENDINGS))
    if space < 0:
      no_name = (
        # US, IT and WHO are names, The and A are not.
        (lower in FUNCTION_WORDS and (len(word) == 1 or not word.isupper()))
        or lower.rstrip('.') in TITLE_WORDS
        # `Centre-right parties`: only the first half is capitalised.
        or (opens and (common or sentence.startswith('-', end)))
      )
      return end if no_name else start
    if not (
      lower in FUNCTION_WORDS
      # `Portions of Kent`, but `Bank of England` and `New York`.
      or (opens and common and sentence[space + 1].islower())
      or (opens and lower in NUMBERS)
    ):
      return start
    # What links it goes too: `After the Battle of X` leaves `Battle of X`.
    start, opens = space + 1, False
    while start < end:
      space = sentence.find(' ', start, end)
      stop = space if space >= 0 else end
      if not sentence[start:stop].islower():
        break
      start = stop + 1
  return end
