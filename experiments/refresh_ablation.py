r"""What a stale index costs, and what keeps it fresh.

  python experiments/refresh_ablation.py --workdir runs/refresh_ablation
  python experiments/refresh_ablation.py --workdir runs/refresh_ablation_wiki \
    --base runs/wiki_small/pretrain --every 10 --seeds 0 1 2 \
    --variants fresh delay_10 delay_10_write_back rolling

Each variant is the same pre-training run (same data, seeds, steps) with another
refresh. `--base` is the workdir of a pre-training run, whose config is taken;
without it `realm quickstart` makes the toy world and its stages first.
`--every` is E, the steps between two versions of the freshest index. All
variants refresh in the trainer's process: the same swaps at the same steps in
every run.

  fresh                 a version every E steps, used at once
  delay_N               the same, used N times E steps later
  never                 the first version to the end
  write_back            the first version, retrieved rows written back
  write_back_next       and the 8 next best rows of each query
  delay_N_write_back    both
  rolling               N / E blocks embedded in every step, round and round
  rolling_write_back    both
  adaptive              a version where the old one finds less than 0.9 of what
                        fresh embeddings would, looked at every E steps

Prints a JSON line for each variant and seed: zero-shot recall on the dev
questions at the end, of a fresh index whatever the variant; means over the last
quarter of the run of the retrieval utility and the loss; the staleness in steps
(the median of the logged medians), versions used, seconds.

Hardware: any; the toy runs take some minutes each on a CPU.
*Not run.*
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import ml_collections

from realm_jax.corpus.store import Corpus
from realm_jax.workdir import files
from realm_jax.workdir.run import Workdir

_TOY = 'runs/refresh_ablation/toy'
_EVERY = 25


def variants(every: int, num_rows: int) -> dict[str, dict[str, Any]]:
  """The keys of `refresh` of each variant."""

  def delayed(times: int) -> dict[str, Any]:
    return {
      'where': 'in_process',
      'policy': 'simulate_delay',
      'every': every,
      'delay_steps': times * every,
    }

  rolling = {'where': 'rolling', 'rows_per_step': -(-num_rows // every)}
  return {
    'fresh': {'where': 'in_process', 'every': every},
    'delay_1': delayed(1),
    'delay_3': delayed(3),
    'delay_10': delayed(10),
    'never': {'where': 'none'},
    'write_back': {'where': 'none', 'write_back': True},
    'write_back_next': {
      'where': 'none',
      'write_back': True,
      'write_back_next': 8,
    },
    'delay_3_write_back': {**delayed(3), 'write_back': True},
    'delay_10_write_back': {**delayed(10), 'write_back': True},
    'rolling': rolling,
    'rolling_write_back': {**rolling, 'write_back': True},
    'adaptive': {
      'where': 'in_process',
      'policy': 'adaptive',
      'every': every,
      'min_overlap': 0.9,
    },
  }


def get_config(variant: str = 'fresh') -> ml_collections.ConfigDict:
  """The toy run of a variant; its stages are those of `realm quickstart`."""
  known = variants(_EVERY, 25 * 32)
  if variant not in known:
    raise ValueError(
      f'refresh_ablation.py:{variant}: choose from {", ".join(known)}'
    )
  return ml_collections.ConfigDict(
    {'corpus': f'{_TOY}/encyclopedia', 'refresh': known[variant]}
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', default='runs/refresh_ablation')
  parser.add_argument('--base', help='workdir of a pre-training run')
  parser.add_argument('--every', type=int, default=_EVERY)
  parser.add_argument('--seeds', type=int, nargs='+', default=[0])
  parser.add_argument('--variants', nargs='+', default=list(variants(1, 1)))
  parser.add_argument('--num_steps', type=int, help='default: of the base')
  flags = parser.parse_args()
  folder = pathlib.Path(flags.workdir)
  base = pathlib.Path(flags.base) if flags.base else folder / 'toy' / 'pretrain'
  if not flags.base and not (folder / 'toy' / 'summary.json').exists():
    run('quickstart', '--workdir', folder / 'toy')
  config = Workdir.open(base).config.to_dict()
  if flags.num_steps:
    config['num_steps'] = flags.num_steps
  num_rows = Corpus.open(config['corpus']).num_blocks
  for seed in flags.seeds:
    for name in flags.variants:
      refresh = variants(flags.every, num_rows)[name]
      if 'rows_per_step' in refresh:  # a multiple of any mesh.data up to 64
        refresh['rows_per_step'] = -(-refresh['rows_per_step'] // 64) * 64
      workdir = folder / f'{name}_{seed}'
      began = time.monotonic()
      values = flat({**config, 'seed': seed, 'refresh': refresh})
      run(
        'pretrain',
        *('--config', f'{__file__}:{name}', '--workdir', workdir),
        *(f'--config.{key}={value}' for key, value in values.items()),
      )
      seconds = round(time.monotonic() - began)
      run('refresh', '--workdir', workdir)
      asked = ('--questions', config['dev_questions'])
      run('evaluate', '--workdir', workdir, *asked, '--output', workdir / 'dev')
      line = {'variant': name, 'seed': seed, **report(workdir)}
      print(json.dumps(line | {'seconds': seconds}), flush=True)


def flat(values: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """Config values by their dotted names, without what is not set."""
  found = {}
  for name, value in values.items():
    if isinstance(value, dict):
      found |= flat(value, f'{prefix}{name}.')
    elif value != '':
      found[f'{prefix}{name}'] = value
  return found


def run(verb: str, *arguments: Any) -> None:
  command = [sys.executable, '-m', 'realm_jax', verb, *map(str, arguments)]
  subprocess.run(command, check=True)


def report(workdir: pathlib.Path) -> dict[str, Any]:
  """What a run came to, from what it wrote down."""
  lines = files.read_lines(workdir / 'metrics.jsonl')
  scores = files.read_json(workdir / 'dev' / 'metrics.json')
  logged = [line for line in lines if 'loss' in line]
  quarter = [
    line for line in logged if line['step'] > 0.75 * logged[-1]['step']
  ]

  def mean(name: str) -> float:
    return round(statistics.fmean(line[name] for line in quarter), 4)

  return {
    **{key: scores[key]['value'] for key in ('recall@1', 'recall@5')},
    'retrieval_utility': mean('retrieval_utility'),
    'loss': mean('loss'),
    'staleness_p50': statistics.median(
      line['staleness_p50'] for line in logged
    ),
    'versions_used': len(files.read_lines(workdir / 'swaps.jsonl')),
  }


if __name__ == '__main__':
  main()
