"""Runs over an approximate index: refresh, swap, train, answer."""

import json
import shutil

import jax
import numpy as np
import pytest
import small_runs

from realm_jax import cli
from realm_jax.index import recall
from realm_jax.index.refresh import refresh
from realm_jax.train.run import train
from realm_jax.workdir import checkpoints, files, versions
from realm_jax.workdir.digest import tree_digest
from realm_jax.workdir.metrics import read_swaps
from realm_jax.workdir.run import Workdir

KINDS = ('scann', 'scann_host')
IN_PROCESS = {'where': 'in_process', 'every': 3}


pytestmark = pytest.mark.usefixtures('compiled_once')


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory, corpus):
  """pretrained(kind): workdir of a run with refreshes."""
  made = {}

  def run(kind):
    if kind not in made:
      path = tmp_path_factory.mktemp('runs') / kind
      # Untrained, the mean of a text tells more of it than [CLS].
      config = small_runs.make_config(
        corpus,
        pooling='mean',
        index={'kind': kind, 'rows_dtype': 'float32'},
        refresh=IN_PROCESS,
      )
      assert train('pretrain', config, str(path)) == 0
      made[kind] = path
    return made[kind]

  return run


def lines(path):
  return [x for x in files.read_lines(path / 'metrics.jsonl') if 'loss' in x]


@pytest.mark.parametrize('kind', KINDS)
def test_versions_are_made_measured_and_swapped_in(pretrained, kind):
  path = pretrained(kind)
  index = Workdir.open(path).index
  for version in versions.list_versions(index):
    manifest = versions.read_manifest(index, version)
    assert manifest.kind == kind
    assert manifest.recall['recall@8'] >= 0.95
    assert manifest.options['num_shards'] == 8
    assert manifest.options['num_leaves_to_search'] >= 1
    assert len(manifest.files) >= 8
    assert manifest.bytes == sum(
      (versions.directory(index, version) / name).stat().length
      for name in manifest.files
    )
  assert [swap['step'] for swap in read_swaps(path)] == [0, 3, 6]
  stale = [line.get('query_staleness_steps') for line in lines(path)]
  # Only the first search is waited for.
  assert stale == ([None] * 6 if kind == 'scann' else [0, 1, 1, 1, 1, 1])
  # The hosts searched for step 4 before the swap that follows step 3.
  of = [line['index_step'] for line in lines(path)]
  assert of == [0, 0, 0, 3 if kind == 'scann' else 0, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_losses_are_those_of_exact_search(pretrained, corpus, tmp_path, kind):
  # All leaves of so small a corpus are searched; a learning rate of nothing
  # makes a query encoder that is a step old a fresh one.
  found = {}
  for name in ('exact', kind):
    config = small_runs.make_config(
      corpus,
      index={'kind': name, 'target_recall': 1.0, 'rows_dtype': 'float32'},
      optimizer={'learning_rate': 0.0},
      model={'dropout': 0.0},
      num_steps=3,
    )
    assert train('pretrain', config, str(tmp_path / name)) == 0
    found[name] = [line['loss'] for line in lines(tmp_path / name)]
  np.testing.assert_allclose(found[kind], found['exact'], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_killed_and_resumed_equals_uninterrupted(corpus, tmp_path, kind):
  config = small_runs.make_config(
    corpus, index={'kind': kind}, checkpoint_every=2, num_steps=4
  )
  whole, halves = tmp_path / 'whole', tmp_path / 'halves'
  assert train('pretrain', config, str(whole)) == 0
  # What a run that was killed in step 3 leaves.
  shutil.copytree(whole, halves)
  shutil.rmtree(halves / 'checkpoints' / '4')
  assert train('pretrain', config, str(halves)) == 0
  digests = [
    tree_digest(
      checkpoints.restore_part(
        path, 4, 'encoder', checkpoints.params_shapes(path, 4)['encoder']
      )
    )
    for path in (whole, halves)
  ]
  assert digests[0] == digests[1]


@pytest.mark.parametrize('kind', KINDS)
def test_a_refresher_beside_the_trainer(pretrained, corpus, tmp_path, kind):
  # What refresh made of a finished run is what the trainer would have made.
  path = pretrained(kind)
  workdir = Workdir.open(path)
  before = versions.list_versions(workdir.index)
  assert refresh(str(path), follow=False) == 0
  assert versions.list_versions(workdir.index) == before


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_finetune_search_ask_evaluate(
  pretrained, corpus, tmp_path, capsys, kind
):
  questions = small_runs.write_lines(
    tmp_path / 'questions.jsonl', map(small_runs.question, range(16))
  )
  config = small_runs.make_config(
    corpus,
    init_from=str(pretrained(kind)),
    pooling='mean',
    index={'kind': kind, 'rows_dtype': 'float32'},
    questions=questions,
    dev_questions=questions,
    num_steps=2,
  )
  tuned = tmp_path / 'finetune'
  assert train('finetune', config, str(tuned)) == 0
  assert np.isfinite([line['loss'] for line in lines(tuned)]).all()
  capsys.readouterr()
  asked = small_runs.question(3)['question']
  arguments = ['search', '--workdir', str(tuned), '--query', asked, '--k', '4']
  assert cli.main(arguments) == 0
  found = json.loads(capsys.readouterr().out)
  scores = [passage['score'] for passage in found]
  assert len(found) == 4 and scores == sorted(scores, reverse=True)
  assert cli.main(['ask', '--workdir', str(tuned), asked]) == 0
  assert json.loads(capsys.readouterr().out)['evidence']
  output = tmp_path / 'eval'
  arguments = ['evaluate', '--workdir', str(tuned), '--questions', questions]
  assert cli.main([*arguments, '--output', str(output)]) == 0
  assert files.read_json(output / 'metrics.json')['n'] == 16


def test_fine_tuning_on_the_hosts_passes_over_damaged_rows(
  pretrained, corpus, tmp_path, capsys
):
  path = tmp_path / 'run'
  shutil.copytree(pretrained('scann_host'), path)
  index = Workdir.open(path).index
  version = versions.list_versions(index)[-1]
  [chunk] = (versions.directory(index, version) / 'rows' / 'c').glob('*/*')
  small_runs.flip_bit(chunk)
  questions = small_runs.write_lines(
    tmp_path / 'questions.jsonl', map(small_runs.question, range(16))
  )
  config = small_runs.make_config(
    corpus,
    init_from=str(path),
    pooling='mean',
    index={'kind': 'scann_host', 'rows_dtype': 'float32'},
    questions=questions,
    num_steps=1,
  )
  assert train('finetune', config, str(tmp_path / 'tuned')) == 0
  assert f'passed over: {index}' in capsys.readouterr().err


@pytest.mark.parametrize('kind', KINDS)
def test_a_damaged_file_is_named(pretrained, tmp_path, capsys, kind):
  path = tmp_path / 'run'
  shutil.copytree(pretrained(kind), path)
  workdir = Workdir.open(path)
  version = versions.list_versions(workdir.index)[-1]
  manifest = versions.read_manifest(workdir.index, version)
  name = sorted(manifest.files)[-1]
  file = versions.directory(workdir.index, version) / name
  small_runs.flip_bit(file)
  longer = small_runs.config_lib.replace(workdir.config, num_steps=7)
  assert train('pretrain', longer, str(path)) == 0
  said = capsys.readouterr().err
  assert f'passed over: {file}: is not what was written' in said
  assert version not in versions.list_versions(workdir.index)
  version = versions.list_versions(workdir.index)[-1]
  file = versions.directory(workdir.index, version) / name
  file.unlink()
  assert train('pretrain', longer, str(path)) == 0  # it is at its last step
  assert f'passed over: {file}: the file is missing' in capsys.readouterr().err
  assert version not in versions.list_versions(workdir.index)


def test_shards_must_fit_the_devices(corpus, tmp_path):
  config = small_runs.make_config(
    corpus, index={'kind': 'scann', 'num_shards': 4}
  )
  assert len(jax.devices()) == 8
  with pytest.raises(ValueError, match=r'index.num_shards: 4.*the 8 devices'):
    train('pretrain', config, str(tmp_path / 'w'))


@pytest.mark.slow
def test_low_recall_is_refused(corpus, tmp_path, monkeypatch):
  config = small_runs.make_config(
    corpus,
    index={
      'kind': 'scann_host',
      'min_recall': 1.0,
      'num_leaves_to_search': 1,
      'reordering_num_neighbors': 1,
    },
  )
  monkeypatch.setattr(recall, 'recall_of', lambda *_: 0.5)
  with pytest.raises(ValueError, match=r'0\.5000, below index.min_recall'):
    train('pretrain', config, str(tmp_path / 'w'))
  assert versions.list_versions(Workdir.open(tmp_path / 'w').index) == []


def test_report_tells_of_every_kind(pretrained, capsys):
  for kind in KINDS:
    arguments = ['index', '--workdir', str(pretrained(kind)), '--report']
    assert cli.main(arguments) == 0
    for version in json.loads(capsys.readouterr().out):
      assert version['kind'] == kind
      assert version['recall']['recall@8'] >= 0.95
      assert version['build_seconds'] > 0
      assert version['bytes'] > version['rows'] * version['dim'] * 2
