r"""A refresh against the bare embedder on the same blocks.

  . launch/env.sh cpu
  python experiments/benchmarks/refresh.py --corpus C

Both embed all blocks of a corpus store, by turns: the jitted embedder on the
very batches of a refresh, in memory before the clock starts, its results left
on the device; and the whole of `index/build.py`, reading, sorting by length,
writing, probing and publishing. Prints one line of JSON.
"""

import argparse
import json
import statistics
import tempfile
import time

import jax

from realm_jax import config as config_lib
from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.index.build import build_version
from realm_jax.index.embed import embed_tokens, read_batches
from realm_jax.model import parts
from realm_jax.parallel import mesh as mesh_lib


def bare(params: dict, corpus: Corpus, config: Config, mesh) -> float:
  """Seconds that the embedder alone takes for all blocks."""
  batches = [
    mesh_lib.put_batch({'token_BL': batch.token_BL}, mesh)
    for batch in read_batches(corpus, config, mesh)
  ]
  with jax.set_mesh(mesh):
    began = time.perf_counter()
    embedded = [
      embed_tokens(
        params, **batch, config=config, sep_id=corpus.tokenizer.sep_id
      )
      for batch in batches
    ]
    jax.block_until_ready(embedded)
  return time.perf_counter() - began


def refreshed(params: dict, corpus: Corpus, config: Config, mesh) -> float:
  """Seconds from the start of a build to its commit."""
  with tempfile.TemporaryDirectory() as index:
    began = time.perf_counter()
    build_version(index, params, corpus, config, mesh, 0, 'benchmark')
    return time.perf_counter() - began


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--corpus', required=True, help='store of realm prepare')
  parser.add_argument('--layers', type=int, default=6)
  parser.add_argument('--hidden', type=int, default=384)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--rounds', type=int, default=3)
  flags = parser.parse_args()
  corpus = Corpus.open(flags.corpus)
  config = config_lib.from_dict(
    {
      'index': {'rows_dtype': flags.dtype},
      'refresh': {'batch_size': flags.batch},
      'model': {
        'vocab_size': corpus.tokenizer.vocab_size,
        'num_layers': flags.layers,
        'hidden_size': flags.hidden,
        'num_heads': max(flags.hidden // 64, 1),
        'mlp_size': 4 * flags.hidden,
        'compute_dtype': flags.dtype,
      },
    }
  )
  mesh = mesh_lib.make_mesh(config.mesh)
  params = parts.init_part('embedder', config, jax.random.key(0))
  params = jax.device_put(params, mesh_lib.tree_shardings(params, mesh))
  bare(params, corpus, config, mesh)  # compiles
  pairs = [
    (
      bare(params, corpus, config, mesh),
      refreshed(params, corpus, config, mesh),
    )
    for _ in range(flags.rounds)
  ]
  print(
    json.dumps(
      {
        **vars(flags),
        'device': jax.devices()[0].device_kind,
        'blocks': corpus.num_blocks,
        'bare_blocks_per_second': [
          round(corpus.num_blocks / alone, 1) for alone, _ in pairs
        ],
        'refresh_blocks_per_second': [
          round(corpus.num_blocks / whole, 1) for _, whole in pairs
        ],
        'share': round(
          statistics.median(alone / whole for alone, whole in pairs), 3
        ),
      }
    )
  )


if __name__ == '__main__':
  main()
