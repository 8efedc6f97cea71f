"""One query or question to a checkpoint."""

from typing import Any

from realm_jax.evaluate.evaluate import passages
from realm_jax.evaluate.restored import restore
from realm_jax.train import answer


def search(
  workdir: str,
  query: str,
  k: int,
  step: int | None = None,
  index_version: int | None = None,
  allow_stale_index: bool = False,
) -> list[dict[str, Any]]:
  """The k best passages for a query.

  Returns:
    Best first: block, document, title, text, score, probability (softmax over
    the passages shown; of a pre-training checkpoint the null document, which
    is not, is among them).

  Raises:
    ValueError: an empty query, k below 1 or above the number of blocks, or
      what `restore` refuses.
  """
  if not query.strip():
    raise ValueError('--query: is empty')
  restored = restore(workdir, step, index_version, allow_stale_index)
  if restored.index is None:
    raise ValueError(f'{workdir}: a closed-book model has no index to search')
  if not 1 <= k <= restored.corpus.num_blocks:
    raise ValueError(
      f'--k {k}: must be from 1 to the {restored.corpus.num_blocks} blocks'
    )
  (found,) = answer.retrieve(
    restored.params,
    restored.index,
    [query],
    k,
    restored.config,
    restored.corpus,
    restored.mesh,
    null=restored.has_null,
  )
  return passages(restored, found, text=True)


def ask(
  workdir: str,
  question: str,
  step: int | None = None,
  index_version: int | None = None,
  allow_stale_index: bool = False,
) -> dict[str, Any]:
  """An answer with the passages it was read from.

  Returns:
    answer (text, empty where nothing was found), score, and evidence: the
    blocks that were read, best first.

  Raises:
    ValueError: an empty question, a checkpoint without reader, or what
      `restore` refuses.
  """
  if not question.strip():
    raise ValueError('the question is empty')
  restored = restore(workdir, step, index_version, allow_stale_index)
  if not restored.reads:
    raise ValueError(f'{workdir}: {restored.why_silent}')
  context = (restored.config, restored.corpus, restored.mesh)
  if restored.index is None:
    (found,) = answer.answer_closed_book(restored.params, [question], *context)
  else:
    (found,) = answer.answer(
      restored.params, restored.index, [question], *context
    )
  beam = restored.config.reader_beam
  read = answer.Evidence(
    found.evidence.rows[:beam], found.evidence.scores[:beam]
  )
  return {
    'answer': found.text,
    'score': found.score if found.text else None,
    'evidence': passages(restored, read, text=True),
  }
