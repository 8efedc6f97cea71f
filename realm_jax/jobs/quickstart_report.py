"""What the quickstart shows at its end: a table and a plot."""

import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from realm_jax.workdir import files

_ROWS = (
  ('closed book: answers from parameters alone', 'closed_book_exact_match'),
  ('answers read from retrieved passages', 'exact_match'),
  (
    'right passage first, before pre-training (ICT)',
    'zero_shot_recall@1_before_pretraining',
  ),
  (
    'right passage first, after pre-training',
    'zero_shot_recall@1_after_pretraining',
  ),
  (
    'answers from documents added after training',
    'new_document_exact_match',
  ),
)


def table(summary: dict[str, Any], picture: str) -> None:
  """Prints the summary for a person, on standard error."""
  console = Console(stderr=True)
  shown = Table(title='What the model learned', title_justify='left')
  shown.add_column('held-out questions')
  shown.add_column('percent', justify='right')
  for label, key in _ROWS:
    shown.add_row(label, f'{summary[key]:.1f}')
  console.print(shown)
  print(
    f'{summary["index_versions_used"]} index versions used; '
    f'{summary["seconds"]:.0f} s in all; {picture}',
    file=sys.stderr,
  )


def plot(workdir: str, picture: str) -> None:
  """Draws loss, retrieval utility and recall over the steps of pre-training.

  Args:
    workdir: of the pre-training run.
    picture: PNG file to write.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  lines = files.read_lines(os.path.join(workdir, 'metrics.jsonl'))
  swaps = files.read_lines(os.path.join(workdir, 'swaps.jsonl'))
  figure, axes = pyplot.subplots(3, 1, figsize=(7, 8), sharex=True)
  curves = (
    ('loss', ('loss',), 'nats a masked span'),
    (
      'retrieval utility: of the mean passage, of the marginal',
      ('retrieval_utility', 'marginal_utility'),
      'nats',
    ),
    ('recall on dev questions', ('recall@1', 'recall@5'), 'percent'),
  )
  for axis, (title, keys, unit) in zip(axes, curves, strict=True):
    for key in keys:
      points = [
        (line['step'], line[key]) for line in lines if line.get(key) is not None
      ]
      axis.plot(*zip(*points, strict=True), label=key)
    for swap in swaps:
      axis.axvline(swap['step'], color='0.85', zorder=0)
    axis.set_title(title, loc='left', fontsize=10)
    axis.set_ylabel(unit)
    axis.legend(frameon=False, fontsize=8)
  axes[-1].set_xlabel('step (grey: a new index version)')
  figure.tight_layout()
  figure.savefig(picture, dpi=120)
  pyplot.close(figure)
