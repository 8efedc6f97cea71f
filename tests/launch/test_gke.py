"""launch/gke.py: manifests against the schemas of Kubernetes and JobSet."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest

from realm_jax.parallel import processes

ROOT = pathlib.Path(__file__).parents[2]
RUN = ['--', 'pretrain', '--config', 'c.py', '--workdir', 'gs://b/w']
TRAINER = ['--name=r', '--image=i', '--trainer=tpu-v4-podslice:4x4x4']
ALL = [
  *TRAINER,
  '--refresher=tpu-v4-podslice:2x2x4',
  *('--evaluator=tpu-v5-lite-podslice:1x1', '--questions=gs://b/q.jsonl'),
]

spec = importlib.util.spec_from_file_location('gke', ROOT / 'launch/gke.py')
gke = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gke)


def closed(required, **properties):
  """A schema of an object with these fields and no others."""
  return {
    'type': 'object',
    'properties': properties,
    'required': required,
    'additionalProperties': False,
  }


TEXT, COUNT = {'type': 'string'}, {'type': 'integer', 'minimum': 0}
# What is used of jobset.x-k8s.io/v1alpha2; its Jobs are Kubernetes' own.
JOB_SET = closed(
  ['apiVersion', 'kind', 'metadata', 'spec'],
  apiVersion={'const': 'jobset.x-k8s.io/v1alpha2'},
  kind={'const': 'JobSet'},
  metadata={'type': 'object', 'required': ['name']},
  spec=closed(
    ['replicatedJobs'],
    failurePolicy=closed(
      [],
      maxRestarts=COUNT,
      restartStrategy={'enum': ['Recreate', 'BlockingRecreate']},
      rules={
        'type': 'array',
        'items': closed(
          ['name', 'action'],
          name={'type': 'string', 'pattern': '^[A-Za-z][A-Za-z0-9_]*$'},
          action={
            'enum': [
              'FailJobSet',
              'RestartJobSet',
              'RestartJobSetAndIgnoreMaxRestarts',
            ]
          },
          onJobFailureReasons={
            'type': 'array',
            'items': {
              'enum': [
                'BackoffLimitExceeded',
                'DeadlineExceeded',
                'FailedIndexes',
                'MaxFailedIndexesExceeded',
                'PodFailurePolicy',
              ]
            },
          },
        ),
      },
    ),
    replicatedJobs={
      'type': 'array',
      'minItems': 1,
      'items': closed(
        ['name', 'template'],
        name=TEXT,
        replicas=COUNT,
        template=closed(['spec'], spec={'type': 'object'}),
      ),
    },
  ),
)


def dry(capsys, *arguments):
  assert gke.main([*arguments, '--dry-run', *RUN]) == 0
  made = json.loads(capsys.readouterr().out)
  assert (made['apiVersion'], made['kind']) == ('v1', 'List')
  return {item['metadata']['name']: item for item in made['items']}


def job(job_set):
  (replicated,) = job_set['spec']['replicatedJobs']
  return replicated['template']['spec']


def container(job_set):
  (found,) = job(job_set)['template']['spec']['containers']
  return found


@pytest.mark.parametrize('more', [[], ['--spot', '--service-account=reader']])
def test_manifests_match_their_schemas(capsys, more):
  made = dry(capsys, *ALL, *more)
  assert [*made] == ['r-trainer', 'r-refresher', 'r-evaluator']
  for name, job_set in made.items():
    jsonschema.Draft202012Validator(JOB_SET).validate(job_set)
    whole = {
      'apiVersion': 'batch/v1',
      'kind': 'Job',
      'metadata': {'name': name},
      'spec': job(job_set),
    }
    kubernetes_validate.validate(
      whole, kubernetes_validate.latest_version(), strict=True
    )


def test_the_schemas_refuse_what_is_wrong(capsys):
  job_set = dry(capsys, *TRAINER)['r-trainer']
  job_set['spec']['failurePolicy']['rules'][0]['action'] = 'Restart'
  with pytest.raises(jsonschema.ValidationError, match="'Restart' is not"):
    jsonschema.Draft202012Validator(JOB_SET).validate(job_set)
  job(job_set)['paralellism'] = 1
  whole = {'apiVersion': 'batch/v1', 'kind': 'Job', 'spec': job(job_set)}
  with pytest.raises(kubernetes_validate.ValidationError, match='paralellism'):
    kubernetes_validate.validate(
      whole, kubernetes_validate.latest_version(), strict=True
    )


def test_each_part_has_its_slice_and_its_verb(capsys):
  made = dry(capsys, *ALL)
  found = {
    name: (job(item)['parallelism'], container(item)['resources']['limits'])
    for name, item in made.items()
  }
  assert found == {
    'r-trainer': (16, {'google.com/tpu': 4}),
    'r-refresher': (4, {'google.com/tpu': 4}),
    'r-evaluator': (1, {'google.com/tpu': 1}),
  }
  commands = [container(item)['command'][4:] for item in made.values()]
  assert commands == [
    [*RUN[1:], '--distributed'],
    ['refresh', '--workdir', 'gs://b/w', '--follow', '--distributed'],
    [
      *('evaluate', '--workdir', 'gs://b/w', '--questions', 'gs://b/q.jsonl'),
      *('--output', 'gs://b/w/evaluation', '--distributed'),
    ],
  ]
  selector = job(made['r-refresher'])['template']['spec']['nodeSelector']
  assert selector == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v4-podslice',
    'cloud.google.com/gke-tpu-topology': '2x2x4',
  }


def test_a_saved_run_restarts_without_being_counted(capsys):
  job_set = dry(capsys, *TRAINER, '--restarts=5')['r-trainer']
  policy = job_set['spec']['failurePolicy']
  assert policy['maxRestarts'] == 5
  (rule,) = policy['rules']
  assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  saved, preempted = job(job_set)['podFailurePolicy']['rules']
  assert saved['onExitCodes']['values'] == [processes.SIGTERM_STATUS]
  assert preempted['onPodConditions'][0]['type'] == 'DisruptionTarget'
  assert job(job_set)['backoffLimit'] == 0


def test_what_a_container_runs(capsys, project):
  """Its command, here instead of in the image."""
  command = container(dry(capsys, *TRAINER)['r-trainer'])['command']
  project.command('realm', 'echo "$JAX_PLATFORMS $*"')
  path = f'{project.path}/bin:/usr/bin:/bin'
  out = subprocess.run(
    command,
    cwd=project.path,
    env={'PATH': path},
    capture_output=True,
    text=True,
    timeout=60,
    check=True,
  ).stdout
  assert out == f'tpu,cpu {" ".join(RUN[1:])} --distributed\n'


def test_without_dry_run_it_is_applied(project):
  project.command('kubectl', 'echo "$*" >> $calls; cat >> $calls')
  done = subprocess.run(
    [sys.executable, 'launch/gke.py', *TRAINER, *RUN],
    cwd=project.path,
    env={'PATH': f'{project.path}/bin:/usr/bin:/bin'},
    timeout=60,
  )
  assert done.returncode == 0
  arguments, *lines = project.calls()
  assert arguments == 'apply -f -'
  assert json.loads('\n'.join(lines))['items'][0]['kind'] == 'JobSet'


@pytest.mark.parametrize(
  'arguments, error',
  [
    ([*TRAINER], 'the following arguments are required: -- VERB'),
    ([*TRAINER[:2], *RUN], '--trainer, --refresher or --evaluator: one is'),
    (
      [*TRAINER, '--trainer=v4-128', *RUN],
      "argument --trainer: 'v4-128', must",
    ),
    ([*TRAINER, '--name=R', *RUN], "argument --name: 'R', must be a-z"),
    ([*ALL[:-1], *RUN], '--evaluator and --questions: one needs the other'),
    (
      [*TRAINER[:-1], TRAINER[-1].replace('4x4', '4x0'), *RUN],
      'argument --trainer: ',
    ),
    ([*TRAINER, '--chips-per-host=0', *RUN], '--chips-per-host: 0, not'),
    ([*TRAINER, '--chips-per-host=3', *RUN], '--chips-per-host: 3, must div'),
    ([*TRAINER, '--', 'pretrain'], '--workdir: must be among'),
    ([*TRAINER, '--', 'pretrain', '--workdir=w'], '--workdir: must be among'),
  ],
)
def test_bad_usage_is_one_line(capsys, arguments, error):
  with pytest.raises(SystemExit) as end:
    gke.main(arguments)
  said = capsys.readouterr().err
  assert end.value.code == 2
  assert said.startswith(f'error: {error}') and said.count('\n') == 1
