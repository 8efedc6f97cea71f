r"""Does a larger slice cost a device more? By compiling, without any TPU.

  pip install libtpu matplotlib
  JAX_PLATFORMS=cpu python experiments/benchmarks/scaling.py \
    --output runs/scaling

Compiles the paper's pre-training step (BERT-base, bfloat16, remat) ahead of
time for slices of TPU v4 and v5e at constant work a device: 4 examples, 104,326
rows of the index. Writes `scaling.json` and `scaling.png`: bytes a device holds
and bytes it sends in a step, by slice. Some minutes a slice; what is in
scaling.json already is not compiled again.

Grow must: what belongs to the queries of all devices, as each of them searches
its own rows for every query: the queries (B x E), a block of scores
(B x search_block), k results each, and the token ids of the candidates before
each device has its own (B x K x L). Shrink must: parameters and moments, split
over all devices.
"""

import argparse
import json
import pathlib

from realm_jax import config as config_lib
from realm_jax import experiment
from realm_jax.train import plan
from realm_jax.train.hardware import parse_topology
from realm_jax.workdir import files

_SLICES = {
  'v4': '2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8',
  'v5e': '2x4 4x4 4x8 8x8 8x16 16x16 16x16:2',
}
_EXAMPLES, _ROWS, _LENGTH = 4, 104_326, 288  # a device; of a block


def measure(name: str) -> dict:
  topology = parse_topology(name)
  paper = experiment.load(
    str(pathlib.Path(__file__).parents[1] / 'pretrain_wiki.py')
  )
  config = config_lib.replace(paper, batch_size=_EXAMPLES * topology.devices)
  corpus = plan.Corpus(_ROWS * topology.devices, _LENGTH)
  return plan.plan(config, corpus, topology, None, 0.4, compile=True)


def draw(found: dict[str, dict], path: pathlib.Path) -> None:
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
  shown = {
    'hbm_bytes_per_device': 'bytes a device holds',
    'collective_bytes_per_step': 'bytes a device sends in a step',
  }
  for axis, (key, title) in zip(axes, shown.items(), strict=True):
    for family in _SLICES:
      lines = [x for name, x in found.items() if name.startswith(family)]
      lines.sort(key=lambda line: line['devices'])
      axis.plot(
        [line['devices'] for line in lines],
        [line[key] / 1e9 for line in lines],
        'o-',
        label=family,
      )
    axis.set(xscale='log', xlabel='devices', ylabel='GB', title=title)
    axis.set_ylim(bottom=0)
    axis.legend()
  figure.tight_layout()
  figure.savefig(path, dpi=120)


def main() -> None:
  parser = argparse.ArgumentParser(description='compile for many slices')
  parser.add_argument('--output', required=True)
  parser.add_argument('--slices', nargs='*', help='default: v4 and v5e')
  flags = parser.parse_args()
  output = pathlib.Path(flags.output)
  output.mkdir(parents=True, exist_ok=True)
  file = output / 'scaling.json'
  found = files.read_json(file) if file.exists() else {}
  names = flags.slices or [
    f'{family}:{layout}'
    for family, layouts in _SLICES.items()
    for layout in layouts.split()
  ]
  for name in names:
    if name not in found:
      found[name] = measure(name)
      files.write_json(file, found)
    line = found[name]
    print(
      json.dumps(
        {
          'slice': name,
          'devices': line['devices'],
          'hbm_bytes_per_device': line['hbm_bytes_per_device'],
          'collectives': line['collective_bytes_per_step_by_kind'],
        }
      ),
      flush=True,
    )
  draw(found, output / 'scaling.png')


if __name__ == '__main__':
  main()
