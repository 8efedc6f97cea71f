r"""Does a larger slice cost a device more? By compiling, without any TPU.

  pip install libtpu matplotlib
  JAX_PLATFORMS=cpu python experiments/benchmarks/scaling.py \
    --output runs/scaling

Compiles the paper's pre-training step (BERT-base, bfloat16, remat) ahead of
time for slices of TPU v4 and v5e at constant work a device: 4 examples, 104,326
rows of the index. Writes `scaling.json` and `scaling.png`: bytes a device holds
and bytes it sends in a step, by slice. Two CPU cores take 3 to 4 minutes a
slice; what is in scaling.json already is not compiled again.

What came out (jaxlib 0.10.2, libtpu 0.0.42), GB a device; of v5e's slices of as
many devices:

  slice        devices  holds  but for state  sends  v5e: holds  but..  sends
  v4:2x2x1     8        2.13   1.69           2.07   2.33        1.89   1.87
  v4:2x2x2     16       1.86   1.63           2.00   2.10        1.87   2.00
  v4:2x2x4     32       1.77   1.65           2.01   1.93        1.81   2.02
  v4:2x4x4     64       1.64   1.52           2.18   1.57        1.46   2.11
  v4:4x4x4     128      1.64   1.53           2.38   1.70        1.59   2.38
  v4:4x4x8     256      1.67   1.56           2.46   1.63        1.52   2.46
  v4:4x8x8     512      1.67   1.56           2.48
  v5e:16x16:2  512                                   2.27        2.15   2.55

Without parameters, gradients and moments, a v4 device holds the same within 7%
of 1.59. v5e's are within 13% of 1.67: XLA packs its heap by chance, what lives
in it at once is 1.04 on 64 and 1.03 on 256 devices of v4. Two slices hold 0.28
more at once: the word table's gradient is sent between slices (0.05 GB) at the
end, once for each of its three uses, and lives until then.

What is sent is flat (8%) to 32 devices; then 9, 19, 23 and 24% more. What
theory says must vary (n devices, s = min(n, 32) of them share a state of P
parameters, B = 4n examples):

- Smaller: state and gradients, 16 P / s bytes.
- Gathers and sums of parameters: (s - 1) / s of their size, flat from 16 on.
- From 64 on: gradients are summed between the c = n / s groups, 2 (c - 1) / c
  of what is summed. Of all but the word table that is 1 / s of them; XLA sums
  the word table's whole, in float32, for each of its uses: 0.56 GB at 256
  devices. From 128 on it gathers the table for each look-up, 0.09 GB, where
  smaller slices send what was looked up, 0.06 for all. Most of the growth is
  this: what is left to gain is one sum for all uses.
- Larger: what belongs to the queries of all devices, as each searches its own
  rows for every query: the queries (B E), a block of scores (B search_block), k
  results each, and the token ids of the candidates before each device has its
  own (B K L): 8 MB of 2.4 GB at 128 devices, 17 of 2.5 at 256.

Split over all 128 devices instead of 32, v4:4x4x4 sends 3.73 and holds 2.04; at
512 BERT-base's state, which 512 does not divide, is whole on every device:
v4:4x8x8 holds 3.77 (parallel/mesh.py).
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
    'bytes a device holds': lambda line: line['hbm_bytes_per_device'],
    'bytes a device sends in a step': lambda line: line[
      'collective_bytes_per_step'
    ],
  }
  for axis, (title, size) in zip(axes, shown.items(), strict=True):
    for family in _SLICES:
      lines = [x for name, x in found.items() if name.startswith(family)]
      if not lines:
        continue
      lines.sort(key=lambda line: line['devices'])
      axis.plot(
        [line['devices'] for line in lines],
        [size(line) / 1e9 for line in lines],
        'o-',
        label=family,
      )
    highest = max(map(size, found.values()))
    axis.set_xscale('log', base=2)
    ticks = sorted({line['devices'] for line in found.values()})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(xlabel='devices', ylabel='GB', title=title)
    axis.set_ylim(0, 1.1 * highest / 1e9)
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
