"""Splits running English text into sentences, by rules."""

import re

# Words that end in a period and rarely end a sentence: titles and parts of
# names, firms and places, references and what stands before numbers, months.
_ABBREVIATIONS = """
  mr mrs ms mx dr prof rev fr hon sr jr esq st ste sts mt mts ft pt gen col lt
  maj capt cmdr comdr sgt cpl pvt adm brig gov sen rep pres supt messrs mme
  mlle sir
  inc ltd co corp bros dept univ assn assoc ave blvd rd
  vs v cf ca al no nos vol vols pp p fig figs ed eds trans est approx ext op
  cit viz eg ie etc resp incl ch sec para fl
  jan feb mar apr jun jul aug sep sept oct nov dec
"""
_HOLDING = frozenset(_ABBREVIATIONS.split())

# Capitalised, these begin a sentence even after an abbreviation.
_BEGINNINGS = """
  The This That These Those There Then Thus Therefore They Their It Its He She
  His Her We Our You Your In On At By For From With Without Within During Since
  Until After Before As An And But Or Nor Yet So If When While Where Although
  Though Because However Moreover Meanwhile Nevertheless Such Some Many Most
  Several Both Each Every Other Another Here What Who Which Why How To Under
  Over Between Among Despite Today Later Also Once Not
"""
_STARTERS = frozenset(_BEGINNINGS.split())

_OPENING = '"\'(\\[{\u00ab\u2018\u201c'
_CLOSING = '"\')\\]}\u00bb\u2019\u201d'

# Where a sentence may end: a mark, what closes with it, and space; or a line.
# Of many marks only the first is tried: else they take quadratic time.
_BREAK = re.compile(rf'(?<![.!?\u2026])([.!?\u2026]+)([{_CLOSING}]*)\s+|\n\s*')
# What may begin a sentence, and its first word.
_BEGIN = re.compile(rf'[{_OPENING}]*[$\u00a3\u20ac#]?(\w+)(\.?)')
_LAST_WORD = re.compile(r'[^\s"\'(\[{/\u2018\u201c\u2013\u2014-]*\Z')
# An initial (`J`), or letters with periods (`U.S`, `Ph.D`, `e.g`).
_LETTERS = re.compile(r'(?:[^\W\d_]{1,2}\.)*[^\W\d_]|(?:[^\W\d_]{1,2}\.)+\w\w?')
_LIST_NUMBER = re.compile(r'(?:\d{1,3}|[^\W\d_]|[ivx]{1,4})\Z')


def split_sentences(text: str) -> list[tuple[int, int]]:
  """Finds the sentences of a text.

  Periods of abbreviations, initials and decimals do not end a sentence; a
  closing quotation mark or bracket stays with the sentence it closes. An empty
  line ends a sentence, and so does a line break that no word in lower case
  follows (extracted articles have a paragraph a line).

  Args:
    text: running text of any length.

  Returns:
    [start, end) characters of each sentence, in order. No sentence is empty or
    begins or ends with white space, and only white space lies between them.
  """
  sentences = []
  start = len(text) - len(text.lstrip())
  for found in _BREAK.finditer(text, start):
    if found.end() == len(text):
      break
    if _ends_sentence(text, start, found):
      sentences.append((start, start + len(text[start : found.end()].rstrip())))
      start = found.end()
  end = len(text.rstrip())
  if start < end:
    sentences.append((start, end))
  return sentences


def _ends_sentence(text: str, start: int, found: re.Match[str]) -> bool:
  mark, closing = found.group(1, 2)
  line_breaks = found[0].count('\n')
  if line_breaks > 1:
    return True
  begin = _BEGIN.match(text, found.end())
  if begin is None:
    # A dash or the like goes on with the sentence, unless on a new line.
    return line_breaks > 0
  word = begin[1]
  if word[0].islower():
    return False
  if line_breaks:
    return True
  if mark != '.' or closing:
    return True
  if word in _STARTERS or (word == 'A' and not begin[2]):
    return not _LIST_NUMBER.match(text, start, found.start())
  before = _LAST_WORD.search(
    text, text.rfind(' ', start, found.start()) + 1, found.start()
  )
  last = before[0] if before else ''
  if last.lower() in _HOLDING or _LETTERS.fullmatch(last):
    return False
  return not _LIST_NUMBER.match(text, start, found.start())
