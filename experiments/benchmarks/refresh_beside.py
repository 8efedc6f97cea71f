r"""A trainer with its refresher beside it, on a core each, against without.

  . launch/env.sh cpu
  python experiments/benchmarks/refresh_beside.py --corpus C

One trainer runs throughout, on the first core. By turns the refresher runs on
the second one, or nothing does; a turn lasts `--seconds`, the refresher's after
its first version is out. Prints one line of JSON:

  steps_per_second     of the turns without and with, and `share`, the median of
                       their quotients;
  longest_at_a_swap    the longest step with a swap, in medians of all steps,
                       beside the longest without one;
  bytes_share          bytes of a version's directory over those of its rows.

A step's length is what `examples_per_second` of a run says that logs every one.

Two runs (2 CPU cores, AMD EPYC; the toy encyclopedia). 4 layers of 256,
`--layers 4 --hidden 256 --seconds 40`, 1,740 blocks: steps a second without and
with 0.85 0.82, 0.82 0.87, 0.87 0.75, share 0.97; median step 1.16 s; longest at
one of 5 swaps 1.33 medians, longest elsewhere (where a step is saved, on the
one core that the trainer has) 2.2; bytes 1.001 of the rows'. 2 layers of 128,
`--seconds 14`, 1,560 blocks: share 1.02 (0.94 to 1.04); median step 213 ms;
longest at one of 6 swaps 2.0 medians, elsewhere 3.4: what swapping and saving
cost does not shrink with the model.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from realm_jax.corpus.store import Corpus
from realm_jax.workdir import files, versions

_BATCH = 8


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--corpus', required=True, help='store of realm prepare')
  parser.add_argument('--layers', type=int, default=2)
  parser.add_argument('--hidden', type=int, default=128)
  parser.add_argument('--seconds', type=float, default=25.0)
  parser.add_argument('--rounds', type=int, default=3)
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    print(json.dumps({**vars(flags), **measure(pathlib.Path(folder), flags)}))


def measure(folder: pathlib.Path, flags: argparse.Namespace) -> dict:
  workdir = folder / 'w'
  experiment = folder / 'x.py'
  experiment.write_text(f'def get_config():\n  return {config(flags)!r}\n')
  trainer = start(0, 'pretrain', '--config', experiment, '--workdir', workdir)
  try:
    wait_for_step(workdir, trainer, 30)
    pairs = []
    for _ in range(flags.rounds):
      without = steps_per_second(workdir, flags.seconds)
      refresher = start(1, 'refresh', '--workdir', workdir, '--follow')
      try:
        before = len(swaps(workdir))
        while len(swaps(workdir)) == before:
          time.sleep(0.2)
        pairs.append((without, steps_per_second(workdir, flags.seconds)))
      finally:
        refresher.send_signal(signal.SIGTERM)
        refresher.wait()
  finally:
    trainer.send_signal(signal.SIGTERM)
    trainer.wait()
  return {
    'blocks': Corpus.open(flags.corpus).num_blocks,
    'steps_per_second': [[round(x, 2) for x in pair] for pair in pairs],
    'share': round(statistics.median(b / a for a, b in pairs), 3),
    **step_lengths(workdir),
    'bytes_share': round(bytes_share(workdir), 4),
  }


def config(flags: argparse.Namespace) -> dict:
  corpus = Corpus.open(flags.corpus)
  return {
    'corpus': flags.corpus,
    'batch_size': _BATCH,
    'num_candidates': 4,
    'query_length': 64,
    'num_steps': 10**6,
    'log_every': 1,
    'sample_every': 0,
    'checkpoint_every': 50,
    'index': {'rows_dtype': 'float32'},
    'refresh': {'batch_size': 8},
    'model': {
      'vocab_size': corpus.tokenizer.vocab_size,
      'num_layers': flags.layers,
      'hidden_size': flags.hidden,
      'num_heads': max(flags.hidden // 64, 1),
      'mlp_size': 4 * flags.hidden,
    },
  }


def start(core: int, *arguments: object) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, '-m', 'realm_jax', *map(str, arguments)],
    preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    stderr=subprocess.DEVNULL,
  )


def newest_step(workdir: pathlib.Path) -> int:
  lines = files.read_lines(workdir / 'metrics.jsonl')
  return lines[-1]['step'] if lines else 0


def wait_for_step(
  workdir: pathlib.Path, trainer: subprocess.Popen, step: int
) -> None:
  while newest_step(workdir) < step:
    if trainer.poll() is not None:
      raise RuntimeError(f'the trainer ended with {trainer.returncode}')
    time.sleep(0.2)


def steps_per_second(workdir: pathlib.Path, seconds: float) -> float:
  began, first = time.perf_counter(), newest_step(workdir)
  time.sleep(seconds)
  steps = newest_step(workdir) - first
  return steps / (time.perf_counter() - began)


def swaps(workdir: pathlib.Path) -> list[int]:
  return [line['step'] for line in files.read_lines(workdir / 'swaps.jsonl')]


def step_lengths(workdir: pathlib.Path) -> dict:
  length = {
    line['step']: _BATCH / line['examples_per_second']
    for line in files.read_lines(workdir / 'metrics.jsonl')
    if 'examples_per_second' in line and line['step'] > 30
  }
  median = statistics.median(length.values())
  # A step is logged when the next one is under way, behind the swap.
  swapped = {s for swap in swaps(workdir)[1:] for s in (swap, swap + 1)}
  others = [x for step, x in length.items() if step not in swapped]
  at_swaps = [x for step, x in length.items() if step in swapped]
  return {
    'median_step_ms': round(1000 * median, 1),
    'swaps': len(at_swaps) // 2,
    'longest_at_a_swap': round(max(at_swaps) / median, 2),
    'longest_without': round(max(others) / median, 2),
  }


def bytes_share(workdir: pathlib.Path) -> float:
  index = workdir / 'index'
  version = versions.list_versions(index)[-1]
  manifest = versions.read_manifest(index, version)
  written = sum(
    file.stat().st_size
    for file in pathlib.Path(versions.directory(index, version)).rglob('*')
    if file.is_file()
  )
  return written / (manifest.rows * manifest.dim * 4)


if __name__ == '__main__':
  main()
