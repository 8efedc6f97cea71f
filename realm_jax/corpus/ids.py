"""Document ids that were seen, kept on disk so that memory does not grow."""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator

from realm_jax.corpus.sources import Document


class SeenIds:
  """Finds the first document that has the id of an earlier one."""

  def __init__(self) -> None:
    # An empty name is a database in a temporary file that SQLite deletes; it
    # is written only when it outgrows the cache (2 MB).
    self._connection = sqlite3.connect('', isolation_level=None)
    self._connection.execute('PRAGMA journal_mode=OFF')
    self._connection.execute('PRAGMA synchronous=OFF')
    self._connection.execute(
      'CREATE TABLE seen (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID'
    )

  def add(self, ids: Iterable[str], place: str) -> None:
    """Adds ids that are known to be different from each other."""
    with _disk_errors():
      self._connection.executemany(
        'INSERT INTO seen VALUES (?, ?)', ((i, place) for i in ids)
      )

  def check(self, documents: Iterable[Document]) -> Iterator[Document]:
    """Passes documents on; ValueError names the second place of an id."""
    for document in documents:
      with _disk_errors():
        before = self._connection.execute(
          'INSERT INTO seen VALUES (?, ?) ON CONFLICT DO NOTHING',
          (document.id, document.place),
        )
      if not before.rowcount:
        (place,) = self._connection.execute(
          'SELECT place FROM seen WHERE id = ?', (document.id,)
        ).fetchone()
        raise ValueError(
          f'{document.place}: id: {document.id!r} is that of {place} already, '
          'must be unique'
        )
      yield document

  def close(self) -> None:
    self._connection.close()


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
  try:
    yield
  except sqlite3.OperationalError as error:  # its temporary file: a full disk
    raise OSError(f'table of document ids: {error}') from error
