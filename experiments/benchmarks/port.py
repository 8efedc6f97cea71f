r"""Examples a second beside the PyTorch port's, by turns in one run.

  . launch/env.sh cpu
  python experiments/benchmarks/port.py --environment DIR

Makes the port's own environment in DIR, if it is not there (torch 2.13.0,
transformers 4.38.2), and starts `step.py` and `torch_port.py` one after the
other, `--rounds` times: BERT-base sizes, 8 candidates, texts of 96 and 288
wordpieces, float32, all of the cores each. The port embeds 8 candidates and
reads with 8; here one of the 8 is the null document, which is only read with.
Prints one line of JSON.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

_HERE = pathlib.Path(__file__).parent
_NEEDS = ('torch==2.13.0', 'transformers==4.38.2', 'numpy<2')


def make_environment(directory: pathlib.Path) -> str:
  """The Python of the port's environment, made if it is not there."""
  python = str(directory / 'bin/python')
  if not (directory / 'complete').exists():
    subprocess.run([sys.executable, '-m', 'venv', directory], check=True)
    subprocess.run([python, '-m', 'pip', 'install', '-q', *_NEEDS], check=True)
    (directory / 'complete').touch()
  return python


def run(*command: str) -> dict[str, Any]:
  """The JSON that a benchmark prints."""
  result = subprocess.run(
    command, stdout=subprocess.PIPE, text=True, check=True
  )
  return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--environment', type=pathlib.Path, required=True)
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--layers', type=int, default=12)
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--micro-batches', type=int, default=8)
  flags = parser.parse_args()
  port = make_environment(flags.environment)
  layers = ('--layers', str(flags.layers))
  ours, theirs = [], []
  for _ in range(flags.rounds):
    ours.append(
      run(
        *(sys.executable, str(_HERE / 'step.py'), *layers, '--steps', '2'),
        *('--batch', str(flags.batch)),
        *('--micro-batches', str(flags.micro_batches)),
      )
    )
    threads = ('--threads', str(len(os.sched_getaffinity(0))))
    theirs.append(run(port, str(_HERE / 'torch_port.py'), *layers, *threads))
  rates = [found['examples_per_second'] for found in ours]
  seconds = [t for found in theirs for t in found['example_s']]
  print(
    json.dumps(
      {
        'examples_per_second': rates,
        'port_examples_per_second': [round(1 / t, 4) for t in seconds],
        'ratio': round(
          statistics.median(rates) * statistics.median(seconds), 2
        ),
        'step': ours[-1],
        'port': theirs[-1],
      }
    )
  )


if __name__ == '__main__':
  main()
