"""Rows of an earlier version that a new one can take over.

When the corpus has grown and the embedder is the same, only the documents that
were added need to be embedded: rows keep their numbers.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.parallel import processes
from realm_jax.workdir import rows as rows_lib
from realm_jax.workdir import versions


@dataclasses.dataclass(frozen=True)
class Base:
  """A version whose rows are the first ones of the one to be made."""

  index: epath.Path
  manifest: versions.Manifest

  def read(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, rows), each chunk checked.

    Ends early at a chunk that cannot be used, which is said: those rows are
    embedded like new ones.
    """
    stop = min(stop, self.manifest.rows)
    size = self.manifest.chunk_rows
    while start < stop:
      end = min((start // size + 1) * size, stop)
      try:
        rows_nE = rows_lib.read_rows(
          self.index, self.manifest.version, start, end
        )
      except (ValueError, OSError) as error:
        # Each process has its own part.
        said = f'refresh: embeds rows from {start} on: {error}'
        print(said, file=sys.stderr, flush=True)
        return
      yield start, rows_nE
      start = end


def find_base(
  places: Sequence[epath.Path],
  corpus: Corpus,
  config: Config,
  embedder_digest: str,
) -> Base | None:
  """The version with the most rows that can be taken over.

  Called by all processes; the first one looks.

  Args:
    places: directories of versions.
    corpus: that the new version will be of.
    config: of the run.
    embedder_digest: of the document embedder.

  Returns:
    The version: of the same embedder, vocabulary and dtype, and of a corpus
    that this one comes from. None: there is none.
  """
  found: list[tuple[int, str, int]] = []
  for index in places if processes.is_first() else ():
    for manifest in versions.readable(index):
      if (
        manifest.embedder_digest == embedder_digest
        and manifest.tokenizer_digest == corpus.tokenizer_digest
        and manifest.dtype == config.index.rows_dtype
        and manifest.dim == config.model.retrieval_size
        and corpus.descends_from(manifest.corpus_fingerprint)
      ):
        found.append((manifest.rows, str(index), manifest.version))
  best = processes.from_first(max(found, default=None))
  if best is None:
    return None
  index = epath.Path(best[1])
  return Base(index, versions.read_manifest(index, best[2]))
