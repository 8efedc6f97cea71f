r"""Megabytes of raw text that `realm prepare` takes a second.

  python experiments/benchmarks/prepare.py --vocab V --input FILE...

Raw text is titles and bodies in UTF-8. Prints one line of JSON: by seconds on
the clock and by CPU seconds of all processes ("a core").
"""

import argparse
import json
import resource
import tempfile
import time

from realm_jax.corpus.prepare import prepare
from realm_jax.corpus.sources import read_documents


def cpu_seconds() -> float:
  usages = (
    resource.getrusage(resource.RUSAGE_SELF),
    resource.getrusage(resource.RUSAGE_CHILDREN),
  )
  return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--input', nargs='+', required=True)
  parser.add_argument('--vocab', required=True)
  parser.add_argument('--workers', type=int, default=1)
  parser.add_argument('--block-length', type=int, default=288)
  flags = parser.parse_args()
  raw = sum(
    len(document.title.encode()) + len(document.text.encode())
    for document in read_documents(flags.input, 'jsonl')
  )
  with tempfile.TemporaryDirectory() as folder:
    cpu, began = cpu_seconds(), time.perf_counter()
    manifest = prepare(
      flags.input,
      f'{folder}/corpus',
      vocab=flags.vocab,
      workers=flags.workers,
      block_length=flags.block_length,
    )
    seconds = time.perf_counter() - began
    cpu = cpu_seconds() - cpu
  print(
    json.dumps(
      {
        'workers': flags.workers,
        'documents': manifest['num_documents'],
        'blocks': manifest['num_blocks'],
        'raw_mb': round(raw / 1e6, 2),
        'seconds': round(seconds, 2),
        'cpu_seconds': round(cpu, 2),
        'mb_per_second': round(raw / 1e6 / seconds, 2),
        'mb_per_cpu_second': round(raw / 1e6 / cpu, 2),
      }
    )
  )


if __name__ == '__main__':
  main()
