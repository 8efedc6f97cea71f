"""Finds the salient spans of a sentence: names, numbers and dates.

The paper (section 3.4) masks what a named-entity tagger finds, and dates that a
regular expression finds. `Tagger` is what the corpus asks of a tagger;
`RuleTagger` is the one that comes along: rules only, nothing to download.
"""

import functools
import itertools
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

# Each branch is entered by the look of its first characters: twice as fast.
_NUMBER_LOOK = (
  r'(?:e(?:ig|le)|fi[frv]|fo[ru]|nin|s(?:e[cv]|ix)|t(?:en|h[ir]|w[eo]))'
)
_SPAN = re.compile(
  r'[^\w.](?:'
  rf'(?=\d)({_DIGIT_DATE}|{_DIGITS})|'
  rf'(?=[{_CAPITAL}])(?:({_MONTH_DATE})|(?P<name>{_NAME}))|'
  rf'(?={_NUMBER_LOOK})({_ORDINAL}{_CENTURY}|{_NUMBER_WORD}))'
)
_FIRST = re.compile(r'\w')
_TITLE = re.compile(
  r'(?:(?:Vice[ -]|Prime |Deputy )?(?:President|Minister|Senator|Governor|'
  r'Congress(?:wo)?man|Representative|Professor|Colonel|Captain|Lieutenant|'
  r'Sergeant|Brigadier|Chancellor|Secretary|Mayor|Ambassador)|'
  rf'(?:Mr|Mrs|Ms|Dr|Prof|Gov|Sen)\.?) (?=[{_CAPITAL}])'
)


class RuleTagger:
  """Names by their capitals; numbers and dates in their common forms."""

  name = 'rules-1'

  def __call__(self, sentence: str) -> list[tuple[int, int]]:
    """See `Tagger`."""
    return [(start, end) for _, start, end in self.tag_all([sentence])]

  def tag_all(self, sentences: Sequence[str]) -> list[tuple[int, int, int]]:
    """Number of the sentence, start and end of each span, as by `__call__`."""
    # No span holds a line break, so that all sentences are searched in one go.
    # One in front too, since a span begins after a character of no word.
    text = '\n' + '\n'.join(sentences)
    spans = []
    number, begin, stop = -1, 0, 1  # of the sentence
    ends = itertools.accumulate(len(sentence) + 1 for sentence in sentences)
    for found in _SPAN.finditer(text):
      start, end = found.span()
      start += 1
      opens = False
      while start >= stop:
        number, begin, stop = number + 1, stop, next(ends) + 1
        opens = True
      if found.lastgroup == 'name':
        opens = opens and not _FIRST.search(text, begin, start)
        name = text[start:end]
        if opens:
          start += _trim(name, True, text.startswith('-', end))
        else:
          start += _trim(name, False, False)
      if start < end:
        spans.append((number, start - begin, end - begin))
    return spans


def tag_all(tagger: Tagger, sentences: Sequence[str]) -> np.ndarray:
  """Tags many sentences.

  Args:
    tagger: any; a RuleTagger is much faster than sentence by sentence.
    sentences: what to tag.

  Returns:
    int64 [3, spans]: number of the sentence, start, end (exclusive), both in
    its characters.
  """
  if isinstance(tagger, RuleTagger):
    spans = tagger.tag_all(sentences)
  else:
    spans = [
      (number, start, end)
      for number, sentence in enumerate(sentences)
      for start, end in tagger(sentence)
    ]
  return np.array(spans, np.int64).reshape(-1, 3).T


# Names come again and again; a few megabytes.
@functools.lru_cache(1 << 15)
def _trim(name: str, opens: bool, hyphen: bool) -> int:
  """Where the name in capitalised words begins; its end if there is none.

  Args:
    name: capitalised words, and what links them.
    opens: whether its first word opens the sentence: then its capital means
      nothing.
    hyphen: whether a hyphen follows.
  """
  start, end = 0, len(name)
  while start < end:
    title = _TITLE.match(name, start)
    if title:
      start, opens = title.end(), False
      continue
    space = name.find(' ', start)
    word = name[start : space if space >= 0 else end]
    lower = word.lower()
    common = lower in OPENERS or (word.istitle() and lower.endswith(ENDINGS))
    if space < 0:
      no_name = (
        # US, IT and WHO are names, The and A are not.
        (lower in FUNCTION_WORDS and (len(word) == 1 or not word.isupper()))
        or lower.rstrip('.') in TITLE_WORDS
        # `Centre-right parties`: only the first half is capitalised.
        or (opens and (common or hyphen))
      )
      return end if no_name else start
    if not (
      lower in FUNCTION_WORDS
      # `Portions of Kent`, but `Bank of England` and `New York`.
      or (opens and common and name[space + 1].islower())
      or (opens and lower in NUMBERS)
    ):
      return start
    # What links it goes too: `After the Battle of X` leaves `Battle of X`.
    start, opens = space + 1, False
    while start < end:
      space = name.find(' ', start)
      stop = space if space >= 0 else end
      if not name[start:stop].islower():
        break
      start = stop + 1
  return end
