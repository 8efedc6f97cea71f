"""Texts to vectors with a trained embedder: feature extraction."""

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np
from etils import epath

from realm_jax.config import MeshConfig
from realm_jax.corpus.blocks import NUM_SPECIAL
from realm_jax.corpus.sources import read_json_lines
from realm_jax.corpus.store import Corpus
from realm_jax.evaluate.restored import Textless, chosen_step, pinned
from realm_jax.index.embed import embed_tokens
from realm_jax.index.refresh import restore_part
from realm_jax.parallel import mesh as mesh_lib
from realm_jax.parallel import processes
from realm_jax.text.wordpiece import WordPiece
from realm_jax.workdir import checkpoints, files
from realm_jax.workdir.run import Workdir

_BATCH = 32
_BLOCK_LENGTH = 288  # of a model that was imported without a corpus


def embed(
  workdir: str, input: str, output: str, side: Literal['query', 'document']
) -> None:
  """Embeds texts with the checkpoint that `evaluate` would take.

  Args:
    workdir: of a stage with a retriever.
    input: JSON lines `{"title"?, "text"}` (`.gz` and `.zst` too).
    output: `.npy` file to write: [n, E] float32, in the order of the lines.
    side: `document` embeds `[CLS] title [SEP] text [SEP]`, cut to the
      corpus's block_length (the title to half of it, as in a block); `query`
      embeds `[CLS] text [SEP]`, cut to query_length, and takes no title.

  Raises:
    ValueError: no checkpoint with a retriever, no place for the output, or a
      line that is not such an object; names file and line.
  """
  _check_output(epath.Path(output))
  run = Workdir.open(workdir)
  step = chosen_step(run, None)
  mesh = mesh_lib.make_mesh(MeshConfig())
  shapes = checkpoints.params_shapes(run.path, step)
  own = side == 'query' and 'query_embedder' in shapes
  part = 'query_embedder' if own else 'document_embedder'
  if part not in shapes:
    raise ValueError(f'{workdir}: step {step} has no {part} to embed with')
  params = restore_part(run, step, part, mesh)
  tokenizer, block_length = _text_side(run)
  length = run.config.query_length if side == 'query' else block_length
  sep_id = tokenizer.sep_id
  data = mesh.shape['data']
  size = -(-_BATCH // data) * data
  texts = _read(input, side)
  vectors = []
  with jax.set_mesh(mesh):
    while part_texts := list(itertools.islice(texts, size)):
      token_BL = np.zeros((size, length), np.int32)
      for row_L, (title, text) in zip(token_BL, part_texts, strict=False):
        ids = _frame(title, text, side, length, tokenizer)
        row_L[: len(ids)] = ids
      processes.beat(f'line {len(vectors) * size}')
      batch = mesh_lib.put_whole({'token_BL': token_BL}, mesh)
      found_BE = embed_tokens(params, **batch, config=run.config, sep_id=sep_id)
      found_BE = mesh_lib.to_host(found_BE)[: len(part_texts)]
      if not (finite_B := np.isfinite(found_BE).all(1)).all():
        raise ValueError(
          f'{workdir}: step {step}: the embedding of text '
          f'{len(vectors) * size + int(np.argmin(finite_B)) + 1} of {input} is '
          f'not finite: the parameters of {part} are damaged'
        )
      vectors.append(found_BE)
  if processes.is_first():
    _write(output, np.concatenate(vectors))


def _check_output(output: epath.Path) -> None:
  if output.is_dir():
    raise ValueError(f'--output {output}: is a directory, expected a file')
  # In a bucket there are no directories to be missing.
  if files.is_local(output) and not output.absolute().parent.is_dir():
    raise ValueError(f'--output {output}: its directory does not exist')


def _text_side(run: Workdir) -> tuple[WordPiece, int]:
  """The tokenizer, and how long a document is at most."""
  if run.config.corpus:
    corpus = Corpus.open(run.config.corpus, pinned(run))
    return corpus.tokenizer, corpus.block_length
  longest = min(_BLOCK_LENGTH, run.config.model.max_positions)
  return Textless(run, 0).tokenizer, longest


def _read(path: str, side: str) -> Iterator[tuple[str, str]]:
  """Yields title ('' if there is none) and text of each line."""
  for number, record in read_json_lines(path):
    text, title = record.get('text'), record.get('title', '')
    if not isinstance(text, str) or not text.strip():
      raise ValueError(f'{path}:{number}: text: {text!r}, must be a text')
    if not isinstance(title, str):
      raise ValueError(f'{path}:{number}: title: {title!r}, must be a text')
    if title and side == 'query':
      raise ValueError(f'{path}:{number}: title: a query has none')
    yield title, text


def _frame(
  title: str, text: str, side: str, length: int, tokenizer: WordPiece
) -> list[int]:
  """Wordpieces with their special ones, `length` at most."""
  ids = [tokenizer.cls_id]
  if side == 'document':
    ids += tokenizer.encode(title)[0][: (length - NUM_SPECIAL) // 2]
    ids.append(tokenizer.sep_id)
  ids += tokenizer.encode(text)[0][: length - len(ids) - 1]
  return [*ids, tokenizer.sep_id]


def _write(output: str, value: Any) -> None:
  """Writes an .npy file that appears whole or not at all."""
  temporary = epath.Path(f'{output}.tmp')
  try:
    with temporary.open('wb') as file:
      np.save(file, value)
    temporary.replace(output)
  except OSError:
    temporary.unlink(missing_ok=True)
    raise
