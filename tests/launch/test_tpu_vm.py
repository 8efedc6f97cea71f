"""launch/tpu_vm.sh: what it would do, and what it refuses."""

import os
import shlex
import subprocess

import pytest

SETTINGS = """\
project=my-project
zone=us-central2-b
name=realm-1
runtime=tpu-ubuntu2204-base
trainer_type=v4-128
refresher_type=v4-32
capacity=(--spot)
realm=(pretrain --config experiments/pretrain_wiki.py --workdir gs://b/w)
"""
PLACE = ['--project=my-project', '--zone=us-central2-b']
RESOURCES = ['gcloud', 'compute', 'tpus', 'queued-resources']
VM = ['gcloud', 'compute', 'tpus', 'tpu-vm']


@pytest.fixture
def settings(project):
  file = project.path / 'settings.sh'
  file.write_text(SETTINGS)
  project.record('gcloud')
  return file


def dry(project, *arguments):
  """The commands that would run, as words."""
  status, out, err = project.run('tpu_vm.sh', '--dry-run', *arguments)
  assert (status, err, project.calls()) == (0, '', [])
  lexer = shlex.shlex(out, posix=True, punctuation_chars='\n')
  lexer.whitespace, lexer.whitespace_split = ' ', True
  commands = [[]]
  for word in lexer:
    if word == '\n':
      commands.append([])
    else:
      commands[-1].append(word)
  return commands[:-1]


def create(part, accelerator):
  return [
    *(*RESOURCES, 'create', f'realm-1-{part}', *PLACE),
    *(f'--node-id=realm-1-{part}', f'--accelerator-type={accelerator}'),
    *('--runtime-version=tpu-ubuntu2204-base', '--spot', '--async'),
  ]


def ssh(part, worker='all'):
  return [*VM, 'ssh', f'realm-1-{part}', *PLACE, f'--worker={worker}']


def test_create_asks_for_two_slices(project, settings):
  assert dry(project, 'settings.sh', 'create') == [
    create('trainer', 'v4-128'),
    create('refresher', 'v4-32'),
  ]


def test_install_waits_and_copies_the_commit(project, settings):
  asked, archive, copy, removed, install = dry(
    project, 'settings.sh', 'install', 'refresher'
  )
  assert asked[4:6] == ['describe', 'realm-1-refresher']
  assert archive[:2] == ['git', 'archive'] and archive[-1] == 'HEAD'
  assert copy[3:6] == ['tpu-vm', 'scp', 'realm.tar.gz']
  assert copy[6:] == ['realm-1-refresher:', *PLACE, '--worker=all']
  assert removed == ['rm', 'realm.tar.gz']
  assert install[:-1] == ssh('refresher')
  assert '-r requirements-tpu.txt' in install[-1]


def test_each_part_is_started_on_all_its_hosts(project, settings):
  (train,) = dry(project, 'settings.sh', 'train')
  assert train[:-1] == ssh('trainer')
  assert (
    '-- pretrain --config experiments/pretrain_wiki.py --workdir gs://b/w '
    '--distributed >> realm.log'
  ) in train[-1]
  (refresh,) = dry(project, 'settings.sh', 'refresh')
  assert refresh[:-1] == ssh('refresher')
  assert (
    'launch/local.sh --platform tpu --restarts 10 -- '
    'refresh --workdir gs://b/w --follow --distributed'
  ) in refresh[-1]


def test_restart_makes_a_slice_anew(project, settings):
  commands = dry(project, 'settings.sh', 'restart', 'trainer')
  assert commands[:2] == [
    [*RESOURCES, 'delete', 'realm-1-trainer', *PLACE, '--force', '--quiet'],
    create('trainer', 'v4-128'),
  ]
  assert commands[2:7] == dry(project, 'settings.sh', 'install', 'trainer')
  assert commands[7:] == dry(project, 'settings.sh', 'train')


def test_logs_stop_and_delete(project, settings):
  (logs,) = dry(project, 'settings.sh', 'logs')
  assert logs[:-1] == ssh('trainer', '0')
  assert 'tail' in logs[-1]
  (stop,) = dry(project, 'settings.sh', 'stop', 'trainer')
  assert stop[:-1] == ssh('trainer')
  assert 'kill -TERM "$(cat realm.pid)"' in stop[-1]
  gone = dry(project, 'settings.sh', 'delete')
  names = ['realm-1-trainer', 'realm-1-refresher']
  assert [command[4:6] for command in gone] == [['delete', n] for n in names]


def test_a_host_runs_one_at_a_time(project, settings):
  project.command('gcloud', 'printf %s "${@: -1}" > sent')
  status, _, _ = project.run('tpu_vm.sh', 'settings.sh', 'train')
  sent = (project.path / 'sent').read_text()
  assert status == 0 and sent.startswith('--command=')
  project.command('bash', 'echo started >> $calls')  # local.sh
  host = project.path / 'realm'
  host.mkdir()
  path = f'{project.path}/bin:{os.environ["PATH"]}'

  def start():
    return subprocess.run(
      ['/bin/bash', '-c', sent.removeprefix('--command=')],
      cwd=project.path,
      env={**os.environ, 'PATH': path},
      capture_output=True,
      text=True,
    )

  pid = host / 'realm.pid'
  pid.write_text(f'{os.getpid()}\n')
  refused = start()
  assert (refused.returncode, project.calls()) == (1, [])
  assert refused.stderr.startswith('error: realm is running here')
  assert pid.read_text() == f'{os.getpid()}\n'
  pid.unlink()
  assert start().returncode == 0
  assert int(pid.read_text()) != os.getpid()


@pytest.mark.parametrize('command', ['stop', 'delete'])
def test_one_slice_that_is_gone_does_not_keep_the_other(
  project, settings, command
):
  project.command('gcloud', 'echo "$5" >> $calls; [[ $5 != *trainer ]]')
  status, _, _ = project.run('tpu_vm.sh', 'settings.sh', command)
  assert (status, project.calls()) == (
    1,
    ['realm-1-trainer', 'realm-1-refresher'],
  )


def test_settings_are_not_looked_for_in_path(project, settings):
  project.command('settings.sh', 'name=another')
  assert dry(project, 'settings.sh', 'create', 'trainer') == [
    create('trainer', 'v4-128')
  ]


def test_without_dry_run_it_calls_gcloud(project, settings):
  status, _, err = project.run('tpu_vm.sh', 'settings.sh', 'create', 'trainer')
  assert (status, err) == (0, '')
  assert project.calls() == [' '.join(create('trainer', 'v4-128'))]


def test_install_waits_until_the_slice_is_there(project, settings):
  project.command(
    'gcloud',
    """echo "$3 $4" >> $calls
[ "$4" != describe ] || sed -n "$(wc -l < $calls)p" states""",
  )
  project.command('sleep', 'echo "sleep $1" >> $calls')
  project.command('git', 'true')
  project.command('rm', 'true')
  states = project.path / 'states'
  states.write_text('WAITING_FOR_RESOURCES\nsleep\nACTIVE\n')
  status, _, err = project.run('tpu_vm.sh', 'settings.sh', 'install', 'trainer')
  assert (status, err) == (0, 'realm-1-trainer: WAITING_FOR_RESOURCES\n')
  ask = 'queued-resources describe'
  assert project.calls() == [
    *(ask, 'sleep 30', ask, 'tpu-vm scp', 'tpu-vm ssh')
  ]
  (project.path / 'calls').unlink()
  states.write_text('SUSPENDED\n' * 2)
  status, _, err = project.run('tpu_vm.sh', 'settings.sh', 'install', 'trainer')
  assert status == 1
  assert err.startswith('error: realm-1-trainer: SUSPENDED; restart trainer')


@pytest.mark.parametrize(
  'arguments, error',
  [
    ([], 'SETTINGS COMMAND are needed'),
    (['none.sh', 'create'], 'none.sh: no such file of settings'),
    (['settings.sh', 'make'], 'make: no such command'),
    (['settings.sh', 'create', 'both'], 'both: must be trainer or refresher'),
    (['settings.sh', 'train', 'trainer'], 'trainer: train takes no slice'),
    (['settings.sh', 'restart'], 'restart: which one'),
  ],
)
def test_bad_usage_is_one_line(project, settings, arguments, error):
  assert project.fails('tpu_vm.sh', *arguments).startswith(f'error: {error}')


@pytest.mark.parametrize(
  'line, other, error',
  [
    ('zone=us-central2-b\n', '', 'settings.sh: zone is not set'),
    ('gs://b/w', '/tmp/w', '--workdir: /tmp/w, must be gs://'),
    ('--workdir gs://b/w', '', '--workdir: is missing'),
  ],
)
def test_bad_settings_are_named(project, settings, line, other, error):
  settings.write_text(SETTINGS.replace(line, other))
  said = project.fails('tpu_vm.sh', 'settings.sh', 'create')
  assert said.startswith(f'error: {error}')
