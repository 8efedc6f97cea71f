"""Text in units that are encoded by themselves, once for all their places."""

import re
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

# What BERT takes for white space. Other control characters are not space: it
# deletes them, so that what stands on both sides of one is one word.
_SPACE = r' \t\n\r\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000'
# Units tile the text. Each is what is normalised by itself: all between two
# spaces if it is not printable ASCII throughout (looked for only after a space,
# else long chunks take quadratic time), or an ASCII word or punctuation mark;
# with the one blank before it, which saves a unit a word. Or other space.
_UNIT = re.compile(
  r' ?(?:'
  rf'(?<![^{_SPACE}])[!-~]*+[^!-~{_SPACE}][^{_SPACE}]*|[A-Za-z0-9]+|[!-~])'
  rf'|[{_SPACE}]+'
)


class Pieces(NamedTuple):
  """The wordpieces of a text, in their order.

  Attributes:
    ids: int32 [P].
    starts: int64 [P], of the characters that each stands for.
    ends: int64 [P], exclusive.
  """

  ids: np.ndarray
  starts: np.ndarray
  ends: np.ndarray


def split_units(text: str) -> list[str]:
  """The units of a text; together they are the text but for ASCII capitals."""
  # One unit for both cases. Only ASCII letters: others may change their number
  # when lowered, and this is how str does it fast.
  return _UNIT.findall(text.encode().lower().decode())


class UnitTable:
  """Units and their wordpieces, each encoded when it is first met.

  Safe for several threads.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
    """An empty table of a tokenizer that units are encoded with."""
    self._tokenizer = tokenizer
    # Units of ASCII need neither normalising nor splitting: twice as fast.
    self._plain = tokenizers.Tokenizer(tokenizer.model)
    self._plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    self._lock = threading.Lock()
    self._clear()

  def __len__(self) -> int:
    return len(self._rows)

  def encode(self, text: str, limit: int) -> Pieces:
    """Encodes a text.

    Args:
      text: any text.
      limit: when the table would hold more units, it starts again with those
        of this text.

    Returns:
      The pieces.
    """
    units = split_units(text)
    with self._lock:
      known = len(self._rows)
      row_U = self._look_up(units)
      if known and len(self._rows) > limit:
        self._clear()
        row_U = self._look_up(units)
      self._learn()
      pieces = self._pieces
      size_U, first_U, count_U = self._units.take(row_U, axis=1)
    before_U = count_U.cumsum() - count_U
    place_P = np.repeat(first_U - before_U, count_U)
    place_P += np.arange(len(place_P))
    start_P = np.repeat(size_U.cumsum() - size_U, count_U)
    ids_P, first_P, last_P = pieces.take(place_P, axis=1)
    return Pieces(ids_P, start_P + first_P, start_P + last_P)

  def _clear(self) -> None:
    self._rows = _Rows()
    # Characters, first piece and number of pieces of each unit.
    self._units = np.zeros((3, 0), np.int32)
    # Id, start and end of each piece, the latter within its unit.
    self._pieces = np.zeros((3, 0), np.int32)
    self._num_pieces = 0

  def _look_up(self, units: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(self._rows.__getitem__, units), np.int64, len(units))

  def _learn(self) -> None:
    """Encodes the new units."""
    new, self._rows.new = self._rows.new, []
    if not new:
      return
    known = len(self._rows) - len(new)
    self._units = _with_room(self._units, len(self._rows))
    plain = np.array([unit.isascii() and unit.isprintable() for unit in new])
    for tokenizer, chosen in ((self._plain, plain), (self._tokenizer, ~plain)):
      numbers = np.flatnonzero(chosen)
      units = [new[number] for number in numbers.tolist()]
      # All in one call: a space divides them.
      encoding = tokenizer.encode(' '.join(units), add_special_tokens=False)
      size_U = np.fromiter(map(len, units), np.int64, len(units))
      start_U = np.cumsum(size_U + 1) - size_U - 1
      places = np.array(encoding.offsets, np.int64).reshape(-1, 2)
      last_U = places[:, 0].searchsorted(start_U + size_U)
      count_U = np.diff(last_U, prepend=0)
      first_U = self._num_pieces + last_U - count_U
      self._units[:, known + numbers] = size_U, first_U, count_U
      places -= np.repeat(start_U, count_U)[:, None]
      first, self._num_pieces = self._num_pieces, self._num_pieces + len(places)
      self._pieces = _with_room(self._pieces, self._num_pieces)
      self._pieces[0, first : self._num_pieces] = encoding.ids
      self._pieces[1:, first : self._num_pieces] = places.T


def _with_room(table: np.ndarray, columns: int) -> np.ndarray:
  """The table, or when it is too small a copy with room for twice as many."""
  if columns <= table.shape[1]:
    return table
  wider = np.zeros((len(table), 2 * columns), table.dtype)
  wider[:, : table.shape[1]] = table
  return wider


class _Rows(dict[str, int]):
  """Numbers units as they are first asked for; `new`: those not encoded."""

  def __init__(self) -> None:
    self.new: list[str] = []

  def __missing__(self, unit: str) -> int:
    self[unit] = number = len(self)
    self.new.append(unit)
    return number
