"""Every experiment file builds a configuration that is valid."""

import ast
import pathlib

import pytest

from realm_jax import experiment

EXPERIMENTS = pathlib.Path(__file__).parents[1] / 'experiments'
FILES = sorted(path.name for path in EXPERIMENTS.glob('*.py'))
ARGUMENTS = {
  'finetune_open_qa.py': ('nq', 'wq', 'trec'),
  'refresh_ablation.py': (
    'fresh',
    'delay_10',
    'never',
    'fresh_write_back',
    'rolling_write_back',
    'adaptive',
    'finetune_frozen',
    'finetune_fresh',
  ),
  'wiki_tiny.py': ('off_the_shelf', 'pretrain', 'finetune'),
  'wiki_small.py': (
    'off_the_shelf',
    'ict',
    'mlm',
    'pretrain',
    'finetune',
    'closed_book',
  ),
  'wiki_full.py': (
    'checkpoint_off_the_shelf',
    'checkpoint_mlm',
    'checkpoint_reading',
    'checkpoint_ict',
    'checkpoint_pretrain',
    'checkpoint_finetune',
    'checkpoint_closed_book',
    'scratch_mlm',
    'scratch_reading',
    'scratch_ict',
    'scratch_pretrain',
    'scratch_finetune',
    'scratch_closed_book',
  ),
}
NOT_RUN = (
  'finetune_open_qa.py',
  'ict_wiki.py',
  'pretrain_ccnews.py',
  'pretrain_wiki.py',
)


def test_an_error_in_a_file_names_the_line(tmp_path, monkeypatch):
  tmp_path = tmp_path / 'x'
  tmp_path.mkdir()
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'x.py').write_text('import os\n\nnothing\n')
  for path in ('x.py', './x.py', '../x/x.py', str(tmp_path / 'x.py')):
    with pytest.raises(ValueError, match=r'x\.py line 3: NameError: '):
      experiment.load(path)
  (tmp_path / 'y.py').write_text('def get_config():\n  return {}\n')
  assert experiment.load('y.py:') == experiment.load('y.py')


@pytest.mark.parametrize(
  'key, value, error',
  [
    ('optimizer.weight_decay', '-5', 'must not be negative'),
    ('optimizer.eps', '0.0', 'must be positive'),
    ('refresh.schedule', '²:5', 'expected FIRST_STEP:EVERY'),
  ],
)
def test_a_value_that_cannot_be_right(tmp_path, key, value, error):
  (tmp_path / 'x.py').write_text('def get_config():\n  return {}\n')
  with pytest.raises(ValueError, match=f'{key}: .*{error}'):
    experiment.load(str(tmp_path / 'x.py'), {key: value})


def load(name, argument=''):
  path = EXPERIMENTS / name
  return experiment.load(f'{path}:{argument}' if argument else str(path))


@pytest.mark.parametrize('name', FILES)
def test_loads_with_each_argument(name):
  assert load(name).corpus  # the default argument, where it takes one
  for argument in ARGUMENTS.get(name, ()):
    assert load(name, argument).corpus


@pytest.mark.parametrize('name', FILES)
def test_docstring_records_the_run(name):
  text = ast.get_docstring(ast.parse((EXPERIMENTS / name).read_text()))
  assert f'experiments/{name}' in text  # the command
  assert 'Hardware:' in text
  assert ('*Not run.*' in text) == (name in NOT_RUN)


def test_the_paper_s_runs_are_there():
  assert set(NOT_RUN) <= set(FILES)


def test_ict_has_the_paper_s_values():
  config = load('ict_wiki.py')
  assert (config.batch_size, config.num_steps) == (4096, 100_000)
  assert config.optimizer.learning_rate == 1e-4
  assert (config.query_length, config.sentence_removal) == (64, 0.9)


@pytest.mark.parametrize('name', ['pretrain_wiki.py', 'pretrain_ccnews.py'])
def test_pretraining_has_the_paper_s_values(name):
  config = load(name)
  assert (config.batch_size, config.num_steps) == (512, 200_000)
  assert config.optimizer.learning_rate == 3e-5
  assert (config.query_length, config.max_masks) == (96, 10)
  assert (config.num_candidates, config.marginal) == (8, 'sequence')
  assert config.masking == 'salient'
  assert config.refresh.where == 'separate'
  # X is Z where none is named.
  assert bool(config.text_corpus) == (name == 'pretrain_ccnews.py')


@pytest.mark.parametrize(
  'name, steps', [('nq', 158_336), ('wq', 205_020), ('trec', 81_180)]
)
def test_finetuning_has_the_paper_s_values(name, steps):
  config = load('finetune_open_qa.py', name)
  assert name in config.questions and name in config.dev_questions
  assert (config.num_steps, config.batch_size) == (steps, 1)
  assert config.optimizer.learning_rate == 1e-5
  assert (config.retriever_beam, config.reader_beam) == (5000, 5)
  assert config.reader_length == 320


def test_an_unknown_argument_is_refused():
  with pytest.raises(ValueError, match='squad: choose from nq, wq, trec'):
    load('finetune_open_qa.py', 'squad')
