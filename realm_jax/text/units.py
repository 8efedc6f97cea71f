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
      if self._rows.new:
        self._learn()
      sizes, firsts, pieces = self._sizes, self._firsts, self._pieces
    end_U = sizes[row_U].cumsum()
    first_U = firsts[row_U]
    count_U = firsts[row_U + 1] - first_U
    before_U = count_U.cumsum() - count_U
    place_P = np.repeat(first_U - before_U, count_U)
    place_P += np.arange(len(place_P))
    start_P = np.repeat(end_U - sizes[row_U], count_U)
    return Pieces(
      pieces.ids[place_P],
      start_P + pieces.starts[place_P],
      start_P + pieces.ends[place_P],
    )

  def _clear(self) -> None:
    self._rows = _Rows()
    none = np.zeros(0, np.int64)
    self._sizes = none  # [U] characters
    self._firsts = np.zeros(1, np.int64)  # [U + 1] first piece
    self._pieces = Pieces(none.astype(np.int32), none, none)  # in their unit

  def _look_up(self, units: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(self._rows.__getitem__, units), np.int64, len(units))

  def _learn(self) -> None:
    """Encodes the new units, all in one call: a space divides them."""
    new, self._rows.new = self._rows.new, []
    encoding = self._tokenizer.encode(' '.join(new), add_special_tokens=False)
    size_U = np.fromiter(map(len, new), np.int64, len(new))
    start_U = np.cumsum(size_U + 1) - size_U - 1
    places = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    last_U = places[:, 0].searchsorted(start_U + size_U)
    count_U = np.diff(last_U, prepend=0)
    places -= np.repeat(start_U, count_U)[:, None]
    self._pieces = Pieces(
      np.append(self._pieces.ids, np.array(encoding.ids, np.int32)),
      np.append(self._pieces.starts, places[:, 0]),
      np.append(self._pieces.ends, places[:, 1]),
    )
    self._sizes = np.append(self._sizes, size_U)
    self._firsts = np.append(self._firsts, self._firsts[-1] + last_U)


class _Rows(dict[str, int]):
  """Numbers units as they are first asked for; `new`: those not encoded."""

  def __init__(self) -> None:
    self.new: list[str] = []

  def __missing__(self, unit: str) -> int:
    self[unit] = number = len(self)
    self.new.append(unit)
    return number
