r"""Maximum inner product search beside FAISS and the scann library.

  . launch/env.sh cpu
  pip install faiss-cpu==1.15.1
  python experiments/benchmarks/mips.py --synthetic 500000 --json \
    --plot mips.svg
  python experiments/benchmarks/mips.py --embeddings X.npy --queries Q.npy \
    --k 8 --kinds exact,faiss_flat --json

All in one process and one run: every kind has a pool of `--threads` threads,
every setting one warm-up and then the median of five times, each the mean of
searches for all queries at once that take 50 ms together. Recall is against
float64 brute force: a row counts that scores no less than the k-th. Memory is
what XLA's program needs beside the index; of other kinds what the process's
peak grows by after the warm-up. At each recall the four fastest settings of
every kind that reach it are then timed again, by turns and `--turns` times:
best is the fastest of these. A sweep takes minutes, in which the speed of a
machine that others use changes up to twofold. `scann_library` calls the very
searcher of `scann_host` (of one shard) without it.

2 cores (AMD EPYC, AVX-512), nothing of ours beside it, 256 queries, k 8, ScaNN
as one shard, thousand queries a second at recall@8 of 0.95 / 0.98; the columns
after the first from an earlier state, without turns, on a faster day and with
other trees for `scann_library`; `own`: Wikipedia embedded by the retriever that
wiki_small.py pre-trained; 5,000,000 with `--leaves 4096`:
| | 500,000 x 128, clustered | 5,000,000 | 18,527 x 384, MiniLM | own |
|---|---|---|---|---|
| exact, float32 | 1.79 (1) | 0.194 (1) | 14.1 (1) | 10.8 (1) |
| exact, bfloat16 | 1.93 / 1.88 (.994) | 0.234 (.994) | 17.5 (.999) | 17.7 (1) |
| scann | 11.8 / 12.0 (.995) | not run | 8.2 / - | 13.8 / 9.3 |
| scann_host | 86.3 / 76.6 | 8.32 / - | 106.1 / 80.7 | 117.0 / 94.1 |
| scann_library | 88.3 / 76.1 | 8.30 / - | 109.3 / 88.1 | 123.6 / 97.0 |
| faiss_flat | 0.19 / 0.18 (1) | 0.018 (1) | 2.71 (1) | 2.80 (1) |
| faiss_ivfpq | 77.2 / 67.1 | 10.20 / - | 114.9 / 83.4 | 136.5 / 100.1 |
(-: not reached by the settings tried, 64 leaves at most, 32 of `scann`.)

At 500,000 rows (`--turns 20`; of 20 times the slowest is 1.5 to 1.8 times the
fastest, of IVF-PQ at 0.95 3.9): `exact` is 9.9 (float32) and 10.1 to 10.4 times
(bfloat16) FAISS's flat index, with 6.4 MB beside 256 and 128 MB of rows;
`scann` is 6.1 and 6.4 times `exact`; `scann_host` is 0.98 and 1.01 times the
library called directly (one setting, 600 times by turns: 0.97, with more leaves
0.98) and 1.12 and 1.14 times FAISS's product codes. Before that, without turns:
1.2 and 1.4 times, and `scann` 7.6 times `exact`. With few rows of many
dimensions `scann` is slower than `exact`. Of the others: `exact` is 11 and 13
times the flat index at 5,000,000 rows; `scann_host` 0.82 of
the product codes there, 0.92 and 0.97 of MiniLM, 0.86 and 0.94 of `own`.
Builds at 500,000 rows, s: scann 22, scann_host 18, IVF-PQ 4 to 8.
"""

import argparse
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import mips_kinds
import numpy as np

_AT = (0.95, 0.98)
_REPEATS = 5
_FINALISTS = 4  # settings of a kind that are timed again
_SECONDS = 0.05  # a repeat takes so long or longer
_BLOCK = 16384

# Settings as measured, and their searches.
Found = list[tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray] | None]]


def synthetic(n: int, dim: int, batch: int, seed: int) -> tuple[Any, Any]:
  """Clustered rows on the unit sphere, and queries near some of them."""
  rng = np.random.default_rng(seed)
  clusters = max(n // 250, 1)
  center_CE = rng.standard_normal((clusters, dim), dtype=np.float32)
  rows_NE = np.empty((n, dim), np.float32)
  for start in range(0, n, _BLOCK):
    part = rows_NE[start : start + _BLOCK]
    part[:] = center_CE[rng.integers(0, clusters, len(part))]
    part += 0.7 * rng.standard_normal(part.shape, dtype=np.float32)
    part /= np.linalg.norm(part, axis=1, keepdims=True)
  noise_BE = rng.standard_normal((batch, dim), dtype=np.float32)
  query_BE = rows_NE[rng.integers(0, n, batch)] + 0.05 * noise_BE
  return rows_NE, query_BE


def brute_force(rows_NE: np.ndarray, query_BE: np.ndarray, k: int) -> Any:
  """The k-th best score of each query, in float64."""
  query_BE = query_BE.astype(np.float64)
  best_BK = np.full((len(query_BE), k), -np.inf)
  for start in range(0, len(rows_NE), _BLOCK):
    rows_nE = rows_NE[start : start + _BLOCK].astype(np.float64)
    both = np.concatenate([best_BK, query_BE @ rows_nE.T], 1)
    best_BK = -np.partition(-both, k - 1, 1)[:, :k]
  return best_BK.min(1)


def recall(
  rows_NE: np.ndarray,
  query_BE: np.ndarray,
  row_BK: np.ndarray,
  least_B: np.ndarray,
) -> float:
  """The share of found rows that are no worse than the k-th."""
  found_BKE = rows_NE[np.maximum(row_BK, 0)].astype(np.float64)
  score_BK = np.einsum('BE,BKE->BK', query_BE.astype(np.float64), found_BKE)
  good_BK = (row_BK >= 0) & (score_BK >= least_B[:, None] - 1e-9)
  return float(good_BK.mean())


def peak_bytes() -> int:
  """The most memory since the last `reset_peak` (Linux)."""
  with open('/proc/self/status') as status:
    [line] = [line for line in status if line.startswith('VmHWM')]
  return int(line.split()[1]) * 1024


def reset_peak() -> int:
  with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')
  return peak_bytes()


def measure(
  point: mips_kinds.Point,
  rows_NE: np.ndarray,
  query_BE: np.ndarray,
  least_B: np.ndarray,
) -> dict[str, Any]:
  """Seconds, recall and memory of one setting."""
  row_BK = point.search(query_BE)
  gc.collect()
  before = reset_peak()
  seconds = [_seconds(point.search, query_BE) for _ in range(_REPEATS)]
  extra = peak_bytes() - before
  if point.temporaries:
    extra = point.temporaries(query_BE)
  return {
    **point.options,
    **_times(seconds, len(query_BE)),
    'recall': round(recall(rows_NE, query_BE, row_BK, least_B), 4),
    'build_seconds': round(point.build_seconds, 2),
    'bytes': point.size,
    'extra_bytes': extra,
  }


def take_turns(found: Found, query_BE: np.ndarray, turns: int) -> None:
  """Times the finalists again, one after the other.

  The sweep of a kind takes minutes, in which a machine that is shared changes.
  """
  seconds = [[] for _ in found]
  for turn in range(turns):
    # In another order every time: threads of one kind wait busily for some
    # milliseconds after a search, at the cost of whoever is next.
    for i in random.Random(turn).sample(range(len(found)), len(found)):
      search = found[i][1]
      search(query_BE)
      seconds[i].append(_seconds(search, query_BE))
  for (point, _), taken in zip(found, seconds, strict=True):
    point.update(_times(taken, len(query_BE)))


def _seconds(search: Any, query_BE: np.ndarray) -> float:
  """Of one search: the mean of as many as take `_SECONDS`."""
  began, times = time.perf_counter(), 0
  while (took := time.perf_counter() - began) < _SECONDS:
    search(query_BE)
    times += 1
  return took / times


def _times(seconds: list[float], queries: int) -> dict[str, Any]:
  return {
    'seconds': round(statistics.median(seconds), 5),
    'spread': [round(min(seconds), 5), round(max(seconds), 5)],
    'queries_per_second': round(queries / statistics.median(seconds), 1),
  }


def fastest(found: Found, least: float, count: int) -> Found:
  """The fastest of the settings that reach a recall."""
  reach = [pair for pair in found if pair[0]['recall'] >= least]
  return sorted(reach, key=lambda pair: pair[0]['seconds'])[:count]


def plot(found: dict[str, list[dict[str, Any]]], title: str, path: str) -> None:
  """Recall and queries a second of the settings that no other one beats."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, axis = pyplot.subplots(figsize=(8, 5))
  for kind, points in found.items():
    front, fastest = [], 0.0
    for point in sorted(
      points, key=lambda p: (-p['recall'], -p['queries_per_second'])
    ):
      if point['queries_per_second'] > fastest:
        fastest = point['queries_per_second']
        front.append((point['recall'], fastest))
    axis.plot(*zip(*front, strict=True), marker='o', label=kind)
  axis.set_yscale('log')
  axis.set_xlabel('recall')
  axis.set_ylabel('queries a second')
  axis.set_title(title)
  axis.grid(which='both', alpha=0.3)
  axis.legend()
  figure.tight_layout()
  figure.savefig(path)
  pyplot.close(figure)


def read(flags: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
  """Rows and queries, float32.

  Raises:
    ValueError: they are not what can be searched.
  """
  if flags.synthetic is not None:
    rows_NE, query_BE = synthetic(
      flags.synthetic, flags.dim, flags.batch, flags.seed
    )
  else:
    rows_NE = _load('--embeddings', flags.embeddings)
    rng = np.random.default_rng(flags.seed)
    query_BE = rows_NE[rng.integers(0, len(rows_NE), flags.batch)]
    noise_BE = rng.standard_normal(query_BE.shape, np.float32)
    query_BE = query_BE + 0.05 * np.abs(query_BE).mean() * noise_BE
  if flags.queries:
    query_BE = _load('--queries', flags.queries)
  if rows_NE.shape[1] != query_BE.shape[1]:
    raise ValueError(
      f'--queries: {query_BE.shape[1]} dimensions, --embeddings have '
      f'{rows_NE.shape[1]}'
    )
  if not 1 <= flags.k <= len(rows_NE):
    raise ValueError(f'--k {flags.k}: must be from 1 to {len(rows_NE)} rows')
  return rows_NE, query_BE


def _load(name: str, path: str) -> np.ndarray:
  found = np.load(path).astype(np.float32)
  if found.ndim != 2 or 0 in found.shape:
    raise ValueError(f'{name} {path}: has shape {found.shape}, must be [n, E]')
  if not (finite_n := np.isfinite(found).all(1)).all():
    raise ValueError(f'{name} {path}: row {np.argmin(finite_n)} is not finite')
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  data = parser.add_mutually_exclusive_group(required=True)
  data.add_argument('--embeddings', help='rows, X.npy')
  data.add_argument('--synthetic', type=int, help='make so many rows')
  parser.add_argument('--queries', help='Q.npy; default: rows and noise')
  parser.add_argument('--batch', type=int, default=256)
  parser.add_argument('--dim', type=int, default=128, help='of synthetic rows')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--k', type=int, default=8)
  parser.add_argument('--kinds', default=','.join(mips_kinds.KINDS))
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--rows-dtypes', default='float32,bfloat16')
  parser.add_argument('--num-shards', type=int, default=1, help='of ScaNN')
  help = 'of a shard of scann_host, of scann_library; lists of faiss_ivfpq'
  parser.add_argument('--leaves', help=help)
  help = 'times that the fastest are timed again, by turns; all stay loaded'
  parser.add_argument('--turns', type=int, default=40, help=help)
  parser.add_argument('--json', action='store_true')
  parser.add_argument('--plot', help='picture to write')
  flags = parser.parse_args()
  kinds = flags.kinds.split(',')
  if unknown := set(kinds) - set(mips_kinds.KINDS):
    parser.error(f'--kinds: {unknown.pop()} is none of {set(mips_kinds.KINDS)}')
  # JAX has no number of threads to set: as many as it may run on.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
  rows_NE, query_BE = read(flags)
  least_B = brute_force(rows_NE, query_BE, flags.k)
  points, chosen = {}, {least: {} for least in _AT}
  for kind in kinds:
    found = []
    for point in mips_kinds.KINDS[kind](rows_NE, flags):
      measured = measure(point, rows_NE, query_BE, least_B)
      found.append((measured, point.search if flags.turns else None))
    points[kind] = [measured for measured, _ in found]
    for least in _AT:
      chosen[least][kind] = fastest(found, least, _FINALISTS)
    del found, point
    gc.collect()
    print(f'{kind}: {len(points[kind])} settings', file=sys.stderr)
  best = {}
  for least, kinds in chosen.items():
    if flags.turns:
      finalists = [pair for found in kinds.values() for pair in found]
      take_turns(finalists, query_BE, flags.turns)
    best[str(least)] = {
      kind: dict(fastest(found, least, 1)[0][0]) if found else None
      for kind, found in kinds.items()
    }
  report(points, best, rows_NE, query_BE, flags)


def report(
  points: dict[str, list[dict[str, Any]]],
  best: dict[str, dict[str, dict[str, Any] | None]],
  rows_NE: np.ndarray,
  query_BE: np.ndarray,
  flags: argparse.Namespace,
) -> None:
  sizes = f'{len(rows_NE)} x {rows_NE.shape[1]}, {len(query_BE)} queries'
  title = f'{sizes}, k {flags.k}, {flags.threads} threads'
  if flags.plot:
    plot(points, title, flags.plot)
  if flags.json:
    print(json.dumps({'data': title, 'best': best, 'points': points}))
    return
  print(title)
  for least, kinds in best.items():
    for kind, point in kinds.items():
      print(f'recall {least}: {kind}: {json.dumps(point)}')


if __name__ == '__main__':
  main()
