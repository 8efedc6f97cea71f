"""Approximate indexes in runs of several processes, for real."""

import subprocess

import numpy as np
import pytest
import small_runs

from realm_jax.workdir import files, versions

KINDS = ('scann', 'scann_host')
STEPS = 6


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """With a corpus, questions, and an experiment file for each stage."""
  path = tmp_path_factory.mktemp('scann_processes')
  corpus = small_runs.make_corpus(path)
  questions = small_runs.write_lines(
    path / 'questions.jsonl', map(small_runs.question, range(20))
  )
  stages = {
    'pretrain': {'refresh': {'where': 'in_process', 'every': 3}},
    'finetune': {'questions': questions, 'dev_questions': questions},
  }
  for stage, changes in stages.items():
    small_runs.write_experiment(
      path / f'{stage}.py',
      corpus,
      model={'dropout': 0.0},
      num_steps=STEPS,
      pooling='mean',
      **changes,
    )
  return path


def run(folder, cache, stage, kind, count, devices):
  """Runs a stage; its losses, and the recall of its versions."""
  workdir = folder / f'{stage}_{kind}_{count}_{devices}'
  arguments = [
    stage,
    *('--config', str(folder / f'{stage}.py')),
    *('--workdir', str(workdir)),
    f'--config.index.kind={kind}',
    '--config.index.rows_dtype=float32',
  ]
  if count == 1:
    started = [
      small_runs.start(
        arguments,
        cache,
        devices,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
      )
    ]
  else:
    started = small_runs.start_cluster(arguments, cache, count, devices)
  statuses, said = small_runs.finish(started)
  assert statuses == [0] * count, said
  manifests = [
    versions.read_manifest(workdir / 'index', version)
    for version in versions.list_versions(workdir / 'index')
  ]
  losses = [
    line['loss']
    for line in files.read_lines(workdir / 'metrics.jsonl')
    if 'loss' in line
  ]
  return losses, [manifest.recall for manifest in manifests]


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
@pytest.mark.parametrize('kind', KINDS)
def test_layouts_give_equal_losses(folder, cache, stage, kind):
  want, recall = run(folder, cache, stage, kind, 1, 1)
  assert len(want) == STEPS
  assert recall and all(found['recall@8'] >= 0.95 for found in recall)
  for count, devices in ((2, 2), (4, 1)):
    losses, again = run(folder, cache, stage, kind, count, devices)
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    assert again == recall
