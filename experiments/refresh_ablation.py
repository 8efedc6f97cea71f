r"""What a stale index costs, and what keeps it fresh.

  python experiments/refresh_ablation.py --workdir runs/refresh_ablation
  python experiments/wiki_tiny.py --data ../shared/data \
    --bert runs/wiki_full/checkpoint/reading
  python experiments/refresh_ablation.py --workdir runs/refresh_ablation_wiki \
    --base runs/wiki_tiny/pretrain --every 15 \
    --questions ../shared/data/qa_squad_dev.jsonl.gz

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
  priority              the first version, and in every step the 32 rows that
                        were retrieved most since they were embedded
  fresh_write_back      a version every E steps, and write_back between them
  fresh_priority        the same with priority
  rolling               N / E blocks embedded in every step, round and round
  rolling_write_back    both
  adaptive              a version where the old one finds less than 0.9 of what
                        fresh embeddings would, looked at every E steps

Of a fine-tuning run as the base:

  finetune_frozen       the document embedder and its index stay (the paper)
  finetune_stale        it learns, its index stays
  finetune_fresh        it learns, a version every E steps

Prints a JSON line for each variant and seed: recall on the questions at the end
(zero-shot after pre-training; fine-tuned, exact match too), of a fresh index
whatever the variant; on dev_questions also of the very index that was in use;
means over the last quarter of the run of the retrieval utility and the loss;
the staleness in steps (the median of the logged medians); the mean over swaps
of what the old index found of what fresh embeddings would; versions used,
seconds.

Of `wiki_tiny.py` (60 steps of 8 sentences, E 15; 6,286 SQuAD dev questions,
200 training questions for the index in use), 2 CPU cores, one run a row; before
it recall@1 and @5 are 64.9 and 87.2. The reader of all these runs had learned
to copy in 150 steps of pre-training on its sentences' own blocks, before
wiki_full.py had its reading stage. Seed 0:

             recall@1    @5   in use  utility   loss   median staleness
  fresh          65.5  87.9     67.5    -0.46  17.45                  8
  never          65.8  88.1     64.0    -0.41  17.49                 31
  write_back     65.4  87.8     65.5    -0.39  17.52                 31

With the retriever at the reader's own rate
(optimizer.retriever_learning_rate_scale 1), seeds 0 / 1:

  fresh          64.2  86.4     63.0     0.12  17.00                  8
  rolling        62.2  86.0     63.5     0.17  17.04                 14
  never   61.8 / 48.9  85.0 / 76.6  56.0 / 54.5                      31
  priority  52.0 / 62.3  77.9 / 86.2  55.0 / 62.0                    31

At the lower rate all three end above where they began, and no nearer to each
other than chance (paired, 6,286 questions tell about 0.4); 60 steps are too few
for a stale index to matter to what is learned. It matters to what is found: the
index in use finds most where it is fresh, more where it is written into than
where it is left alone. At the higher rate, which moves an embedding by two
thirds of its length in 60 steps, seeds differ by more than variants do: one run
of a variant tells nothing there, and rows that are written level
(realm_jax/index/write.py) do no harm that could be seen. Written as they are
they do: they win every search, one block was found for up to 7 of 8 sentences
(`priority`, seed 0, higher rate: 42.4 and 70.6).

Delays, adaptive, the `fresh_` and `rolling_` combinations have not been run on
real text; the toy runs not since rows are written level.

Fine-tuning after `fresh` at the higher rate (`--every 20 --num_steps 60`, 8
questions a step; 1,000 of the SQuAD dev questions, every fourth):

                    recall@1    @5   exact match   loss   median staleness
  finetune_frozen       66.5  86.3          14.6   4.78                  0
  finetune_stale        65.8  87.8          14.8   4.53                 31
  finetune_fresh        66.0  87.7          14.9   4.85                 11

Recall@5 is 1.5 points higher where the document embedder learns too, whatever
the age of its index; 1,000 questions tell about 2. At a tenth of the reader's
rate the old version finds 0.90 of what a fresh one does 20 steps later.

Hardware: any; the toy runs take some minutes each on a CPU.
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


def variants(stage: str, every: int, num_rows: int) -> dict[str, Any]:
  """The keys of the config that each variant changes."""
  fresh = {'where': 'in_process', 'every': every}
  none = {'where': 'none'}
  if stage == 'finetune':
    return {
      'frozen': {'refresh': none},
      'stale': {'train_document_embedder': True, 'refresh': none},
      'fresh': {'train_document_embedder': True, 'refresh': fresh},
    }

  def delayed(times: int) -> dict[str, Any]:
    delay = {'policy': 'simulate_delay', 'delay_steps': times * every}
    return {**fresh, **delay}

  rolling = {'where': 'rolling', 'rows_per_step': -(-num_rows // every)}
  refresh = {
    'fresh': fresh,
    'delay_1': delayed(1),
    'delay_3': delayed(3),
    'delay_10': delayed(10),
    'never': none,
    'write_back': {**none, 'write_back': True},
    'priority': {**none, 'priority_rows': 32},
    'fresh_write_back': {**fresh, 'write_back': True},
    'fresh_priority': {**fresh, 'priority_rows': 32},
    'rolling': rolling,
    'rolling_write_back': {**rolling, 'write_back': True},
    'adaptive': {**fresh, 'policy': 'adaptive', 'min_overlap': 0.9},
  }
  return {name: {'refresh': keys} for name, keys in refresh.items()}


def get_config(variant: str = 'fresh') -> ml_collections.ConfigDict:
  """The toy run of a variant; its stages are those of `realm quickstart`."""
  known = {
    **{
      f'finetune_{name}': keys
      for name, keys in variants('finetune', _EVERY, 0).items()
    },
    **variants('pretrain', _EVERY, 25 * 32),
  }
  if variant not in known:
    raise ValueError(
      f'refresh_ablation.py:{variant}: choose from {", ".join(known)}'
    )
  return ml_collections.ConfigDict(
    {'corpus': f'{_TOY}/encyclopedia', **known[variant]}
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', default='runs/refresh_ablation')
  parser.add_argument('--base', help='workdir of a pre-training run')
  parser.add_argument('--every', type=int, default=_EVERY)
  parser.add_argument('--seeds', type=int, nargs='+', default=[0])
  parser.add_argument('--variants', nargs='+', help='default: all')
  help = 'of the evaluation; default: dev_questions of the base'
  parser.add_argument('--questions', help=help)
  parser.add_argument('--num_steps', type=int, help='default: of the base')
  flags = parser.parse_args()
  folder = pathlib.Path(flags.workdir)
  base = pathlib.Path(flags.base) if flags.base else folder / 'toy' / 'pretrain'
  if not flags.base and not (folder / 'toy' / 'summary.json').exists():
    run('quickstart', '--workdir', folder / 'toy')
  opened = Workdir.open(base)
  stage, config = opened.stage, opened.config.to_dict()
  if flags.num_steps:
    config['num_steps'] = flags.num_steps
  num_rows = Corpus.open(config['corpus']).num_blocks
  known = variants(stage, flags.every, num_rows)
  prefix = 'finetune_' if stage == 'finetune' else ''
  for seed in flags.seeds:
    for name in flags.variants or known:
      name = name.removeprefix(prefix)
      if name not in known:
        raise SystemExit(f'error: {name}: choose from {", ".join(known)}')
      changes = known[name]
      refresh = changes['refresh']
      if 'rows_per_step' in refresh:  # a multiple of any mesh.data up to 64
        refresh['rows_per_step'] = -(-refresh['rows_per_step'] // 64) * 64
      refresh.setdefault('batch_size', config['refresh']['batch_size'])
      workdir = folder / f'{prefix}{name}_{seed}'
      began = time.monotonic()
      values = flat({**config, 'seed': seed, **changes})
      run(
        stage,
        *('--config', f'{__file__}:{prefix}{name}', '--workdir', workdir),
        *(f'--config.{key}={value}' for key, value in values.items()),
      )
      seconds = round(time.monotonic() - began)
      run('refresh', '--workdir', workdir)
      asked = ('--questions', flags.questions or config['dev_questions'])
      run('evaluate', '--workdir', workdir, *asked, '--output', workdir / 'dev')
      line = {'variant': f'{prefix}{name}', 'seed': seed, **report(workdir)}
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

  found = {
    key: scores[key]['value']
    for key in ('recall@1', 'recall@5', 'exact_match')
    if scores.get(key)  # a retriever alone gives no answers
  }
  for name in ('retrieval_utility', 'loss'):
    if name in logged[-1]:
      found[name] = round(statistics.fmean(line[name] for line in quarter), 4)
  asked = [line for line in lines if 'recall@1' in line]
  if asked:
    found['recall@1 in use'] = asked[-1]['recall@1']
  if 'staleness_p50' in logged[-1]:
    ages = [line['staleness_p50'] for line in logged]
    found['staleness_p50'] = statistics.median(ages)
  swaps = files.read_lines(workdir / 'swaps.jsonl')
  kept = [
    value
    for swap in swaps
    for name, value in swap.items()
    if name.startswith('probe_recall_before')
  ]
  if kept:
    found['old of fresh'] = round(statistics.fmean(kept), 3)
  return found | {'versions_used': len(swaps)}


if __name__ == '__main__':
  main()
