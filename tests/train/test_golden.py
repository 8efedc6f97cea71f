"""The first steps of every stage, chained, give the numbers they always gave.

A change of data order, masking, initialisation, loss, dropout or optimizer
shows here. Where one is meant, write the new numbers down (`pytest -s` shows
them) and say in the commit why they changed.
"""

import pytest
import small_runs

from realm_jax.train.run import train
from realm_jax.workdir import files

# stage: (loss, gradient_norm) of steps 1 and 2. Dropout is on.
GOLDEN = {
  'mlm': [(5.337424, 2.382067), (5.309254, 2.113997)],
  'ict': [(2.352575, 141.5876), (2.080705, 0.431099)],
  'pretrain': [(7.091448, 2.382908), (7.870841, 3.075701)],
  'finetune': [(3.888743, 1.065456), (3.718851, 0.882835)],
}


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
  folder = tmp_path_factory.mktemp('golden')
  corpus = small_runs.make_corpus(folder)
  questions = small_runs.write_lines(
    folder / 'questions.jsonl', map(small_runs.question, range(30))
  )
  before = ''
  with small_runs.compile_once(folder / 'cache'):
    for stage in GOLDEN:
      config = small_runs.make_config(
        corpus,
        init_from=before,
        questions=questions if stage == 'finetune' else '',
        num_steps=2,
      )
      before = str(folder / stage)
      assert train(stage, config, before) == 0
  return folder


@pytest.mark.parametrize('stage', GOLDEN)
def test_first_steps(chain, stage):
  lines = files.read_lines(chain / stage / 'metrics.jsonl')
  seen = [(line['loss'], line['gradient_norm']) for line in lines]
  print('\n', stage, seen)
  # The order of sums differs between machines and versions of XLA.
  for got, want in zip(seen, GOLDEN[stage], strict=True):
    assert got == pytest.approx(want, rel=1e-3)
