"""A plan from what the command line says."""

import sys
from typing import Any

from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.train import plan as plan_lib
from realm_jax.train.hardware import parse_topology

# Wikipedia as the paper cut it (appendix B).
_PAPER = plan_lib.Corpus(13_353_718, 288)


def plan(
  config: Config,
  topology: str,
  refresh_topology: str | None = None,
  blocks: int | None = None,
  block_length: int | None = None,
  efficiency: float = 0.4,
  compile: bool = False,
) -> dict[str, Any]:
  """Plans pre-training; see train.plan.

  Args:
    config: of the run; its corpus need not be there.
    topology: of the trainer.
    refresh_topology: of the refresh job.
    blocks: of Z.
    block_length: of Z.
    efficiency: share of the peak.
    compile: ask the compiler.

  Raises:
    ValueError: a flag cannot be right; names it.
  """
  for flag, value in (('--blocks', blocks), ('--block-length', block_length)):
    if value is not None and value < 1:
      raise ValueError(f'{flag} {value}: must be at least 1')
  if not 0 < efficiency <= 1:
    raise ValueError(f'--efficiency {efficiency}: must be above 0, at most 1')
  trainer = parse_topology(topology)
  refresher = None
  if refresh_topology is not None:
    refresher = parse_topology(refresh_topology, '--refresh-topology')
  known = _PAPER
  if config.corpus and epath.Path(config.corpus).exists():
    store = Corpus.open(config.corpus)
    known = plan_lib.Corpus(store.num_blocks, store.block_length)
  elif blocks is None or block_length is None:
    where = config.corpus or 'config.corpus'
    print(
      f"plan: no corpus at {where}: takes the paper's {_PAPER.blocks:,} blocks "
      f'of {_PAPER.block_length} where no flag says otherwise',
      file=sys.stderr,
    )
  corpus = plan_lib.Corpus(
    blocks or known.blocks, block_length or known.block_length
  )
  return plan_lib.plan(config, corpus, trainer, refresher, efficiency, compile)
