r"""What the training loop costs beside the step.

  . launch/env.sh cpu
  python experiments/benchmarks/loop.py

Pre-trains on the toy world with a model of BERT-base sizes, batch 2, 2
candidates, every step logged: a smaller step than anybody's, so that the share
is an upper bound. Each step is waited for, which the loop itself does not do.
Prints one line of JSON: seconds in steps, seconds outside, programs compiled.
"""

import argparse
import json
import os
import tempfile
import time
from typing import Any

import jax

from realm_jax import config as config_lib
from realm_jax.corpus import toy
from realm_jax.corpus.prepare import prepare
from realm_jax.train import run


class Timed:
  """A jitted step that is waited for, and the seconds it took."""

  def __init__(self, step: Any):
    self.step = step
    self.began: list[float] = []
    self.ended: list[float] = []

  def __call__(self, *arguments: Any) -> Any:
    self.began.append(time.perf_counter())
    result = jax.block_until_ready(self.step(*arguments))
    self.ended.append(time.perf_counter())
    return result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--steps', type=int, default=12)
  parser.add_argument('--layers', type=int, default=12)
  parser.add_argument('--batch', type=int, default=2)
  parser.add_argument('--candidates', type=int, default=2)
  flags = parser.parse_args()
  timed: list[Timed] = []
  jit_step = run.jit_step

  def watch(*arguments: Any) -> Timed:
    timed.append(Timed(jit_step(*arguments)))
    return timed[-1]

  run.jit_step = watch
  with tempfile.TemporaryDirectory() as folder:
    world = toy.write_world(os.path.join(folder, 'world'), 0, 'small')
    corpus = os.path.join(folder, 'corpus')
    source = [str(world['files']['encyclopedia'])]
    prepare(source, corpus, train_vocab=2048)
    config = config_lib.from_dict(
      {
        'corpus': corpus,
        'num_steps': flags.steps,
        'batch_size': flags.batch,
        'num_candidates': flags.candidates,
        'log_every': 1,
        'checkpoint_every': 10**6,
        'index': {'rows_dtype': 'float32'},
        'refresh': {'where': 'none', 'batch_size': 8},
        'model': {'num_layers': flags.layers},
      }
    )
    run.train('pretrain', config, os.path.join(folder, 'pretrain'))
  (step,) = timed
  inside = [
    end - began for began, end in zip(step.began, step.ended, strict=True)
  ][1:]
  # From the end of a step to the start of the next, the first left out: it
  # compiles, and the state of step 0 is being saved behind it.
  outside = [
    began - end
    for end, began in zip(step.ended[1:-1], step.began[2:], strict=True)
  ]
  mean_in, mean_out = sum(inside) / len(inside), sum(outside) / len(outside)
  print(
    json.dumps(
      {
        **vars(flags),
        'device': jax.devices()[0].device_kind,
        'step_s': round(mean_in, 4),
        'outside_s': round(mean_out, 5),
        'largest_outside_s': round(max(outside), 5),
        'overhead': round(mean_out / mean_in, 5),
        'programs': step.step._cache_size(),
      }
    )
  )


if __name__ == '__main__':
  main()
