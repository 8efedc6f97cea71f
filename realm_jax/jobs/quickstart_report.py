"""The table that the quickstart shows at its end."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

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
