"""A corpus, questions and configs so small that a stage takes seconds."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache

from realm_jax import config as config_lib
from realm_jax.corpus.prepare import prepare
from realm_jax.workdir import checkpoints
from realm_jax.workdir.metrics import MetricsWriter

BLOCK_LENGTH = 40
SIZES = {
  'vocab_size': 200,
  'hidden_size': 16,
  'num_layers': 1,
  'num_heads': 2,
  'mlp_size': 32,
  'max_positions': 80,
  'retrieval_size': 8,
  'span_hidden_size': 8,
}
BASE = {
  'batch_size': 8,
  'query_length': 24,
  'reader_length': 64,
  'max_masks': 4,
  'num_candidates': 3,
  'num_steps': 6,
  'log_every': 1,
  'checkpoint_every': 100,
  'retriever_beam': 10,
  'reader_beam': 2,
  'optimizer': {'learning_rate': 1e-3},
  'refresh': {'where': 'none', 'batch_size': 16, 'poll_seconds': 0.1},
}
_NAMES = ('Arno', 'Bela', 'Cira', 'Dorn', 'Edda', 'Falk', 'Gina', 'Hako')
_TOWNS = ('Lund', 'Mora', 'Nord', 'Osby', 'Pite')


def document(number):
  name = f'{_NAMES[number % 8]} {_NAMES[number // 8 % 8]}sen'
  town = _TOWNS[number % 5]
  return {
    'id': f'd{number}',
    'title': name,
    'text': f'{name} was born near {town} in {1800 + number}. '
    f'The house of {name} stands by the river. '
    f'Later the people of {town} saw {name} again.',
  }


def question(number):
  return {
    'id': f'q{number}',
    'question': f'Where was {document(number)["title"]} born?',
    'answers': [_TOWNS[number % 5]],
  }


def write_lines(path, records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return str(path)


def make_corpus(folder, count=30, vocab=None):
  """Prepares `folder/z` of `count` documents; gives its path."""
  source = write_lines(folder / 'z.jsonl', map(document, range(count)))
  learn = {'train_vocab': SIZES['vocab_size']}
  prepare(
    [source],
    str(folder / 'z'),
    block_length=BLOCK_LENGTH,
    **({'vocab': vocab} if vocab else learn),
  )
  return str(folder / 'z')


def make_config(corpus, **changes):
  """A Config; sections take dicts of the keys they change."""
  values = {**BASE, 'model': SIZES, 'corpus': corpus}
  return config_lib.replace(config_lib.from_dict(values), **changes)


def write_experiment(path, corpus, **changes):
  """A file for --config."""
  values = make_config(corpus, **changes).to_dict()
  path.write_text(f'def get_config():\n  return {values!r}\n')
  return str(path)


def terminate_at(monkeypatch, last):
  """SIGTERM comes while the line of step `last` is written."""
  write = MetricsWriter.write

  def stop(self, step, values):
    write(self, step, values)
    if step == last:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(MetricsWriter, 'write', stop)


@contextlib.contextmanager
def compile_once(cache):
  """What this process compiles is kept in a directory, and compiled fast."""
  keys = {
    'jax_compilation_cache_dir': str(cache),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_disable_most_optimizations': True,  # compiling is most of the time
  }
  before = {key: jax.config.values[key] for key in keys}
  try:
    for key, value in keys.items():
      jax.config.update(key, value)
    compilation_cache.reset_cache()
    yield
  finally:
    for key, value in before.items():
      jax.config.update(key, value)
    compilation_cache.reset_cache()


def environment(cache):
  """One CPU device, and programs compiled once for all processes."""
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  }


def flip_bit(path):
  """Changes one bit in the middle of a file."""
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


def forge_digest(workdir, step):
  """Lets saved.jsonl tell of 64 f as a step's digest; gives the true one."""
  true = checkpoints.read_record(workdir, step)['embedder_digest']
  saved = workdir / 'saved.jsonl'
  saved.write_text(saved.read_text().replace(true, 'f' * 64))
  return true


def start(arguments, cache, devices=1, **options):
  """Starts `python -m realm_jax ...`."""
  flags = f'--xla_force_host_platform_device_count={devices}'
  return subprocess.Popen(
    [sys.executable, '-m', 'realm_jax', *arguments],
    env=environment(cache) | {'XLA_FLAGS': flags},
    text=True,
    **options,
  )


def free_address():
  """HOST:PORT on loopback that nobody listens at."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return f'127.0.0.1:{free.getsockname()[1]}'


def start_cluster(
  arguments, cache, count, devices=1, last=(), options=None, places=None
):
  """Starts `count` processes of one run on loopback.

  `last` are arguments of the last one alone; `options` of Popen, by default
  what they say is piped; `places` the working directory of each.
  """
  if options is None:
    options = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
  coordinator = free_address()
  return [
    start(
      [
        *arguments,
        f'--coordinator={coordinator}',
        f'--num-processes={count}',
        f'--process-id={place}',
        *(last if place == count - 1 else ()),
      ],
      cache,
      devices,
      cwd=places[place] if places else None,
      **options,
    )
    for place in range(count)
  ]


def finish(cluster, timeout=300):
  """Waits for processes: their statuses and what they wrote on stderr."""
  try:
    said = [process.communicate(timeout=timeout)[1] for process in cluster]
  finally:
    for process in cluster:
      process.kill()
  return [process.returncode for process in cluster], said
