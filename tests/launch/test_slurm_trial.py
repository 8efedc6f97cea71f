"""launch/slurm.sh on a Slurm of its own: four nodes, all of them loopback."""

import getpass
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import small_runs

from realm_jax.workdir import checkpoints, files, versions

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 200
NODES = [f'127.0.0.{number}' for number in range(11, 15)]

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not (shutil.which('slurmctld') and shutil.which('slurmd')),
    reason='no Slurm here: apt-get install slurmctld slurmd slurm-client',
  ),
]


def free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def write_conf(folder):
  """No munge, no cgroups, no name that has to be looked up."""
  nodes = '\n'.join(
    f'NodeName={node} NodeHostname=localhost Port={free_port()} CPUs=1'
    for node in NODES
  )
  user = getpass.getuser()
  (folder / 'slurm.conf').write_text(f"""\
ClusterName=trial
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={free_port()}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
# A job that is put back waits for as long.
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")


@pytest.fixture
def slurm(tmp_path):
  """slurm(COMMAND...): what a command prints, in a project of its own."""
  project = tmp_path / 'project'
  shutil.copytree(ROOT / 'launch', project / 'launch')
  realm = project / '.venv/bin/realm'
  realm.parent.mkdir(parents=True)
  realm.write_text(f'#!/bin/sh\nexec {sys.executable} -m realm_jax "$@"\n')
  realm.chmod(0o755)
  write_conf(tmp_path)
  environment = small_runs.environment(tmp_path / 'cache') | {
    'SLURM_CONF': str(tmp_path / 'slurm.conf'),
    'PYTHONPATH': str(ROOT),
  }

  def call(*command):
    done = subprocess.run(
      command,
      cwd=project,
      env=environment,
      capture_output=True,
      text=True,
      timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  try:
    (tmp_path / 'state').mkdir()
    call('slurmctld', '-c')
    for node in NODES:
      (tmp_path / f'spool-{node}').mkdir()
      call('slurmd', '-N', node)
    wait_for(lambda: call('sinfo', '-h', '-o', '%T').split() == ['idle'])
    yield call
    call('scancel', '--user', getpass.getuser())
    wait_for(lambda: not call('squeue', '--noheader'))
  finally:
    for file in tmp_path.glob('*.pid'):
      os.kill(int(file.read_text()), signal.SIGTERM)


def wait_for(condition, seconds=300):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, condition
    time.sleep(0.5)


def processes(*words):
  """Ids of the processes of realm with all these words."""
  found = []
  for file in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      arguments = file.read_text().split('\0')
    except OSError:
      continue
    if 'realm_jax' in arguments and {*words} <= {*arguments}:
      found.append(int(file.parent.name))
  return found


def test_a_job_is_put_back_and_goes_on(slurm, tmp_path):
  workdir = tmp_path / 'run'
  config = small_runs.write_experiment(
    tmp_path / 'pretrain.py',
    small_runs.make_corpus(tmp_path),
    num_steps=STEPS,
    checkpoint_every=20,
    refresh={'where': 'separate'},
  )
  said = slurm(
    *('bash', 'launch/slurm.sh', '--platform', 'cpu'),
    *('--trainer', '--nodes=2', '--refresher', '--nodes=1', '--'),
    *('pretrain', '--config', config, '--workdir', str(workdir)),
  )
  job = said.split()[-1]
  began = time.monotonic()

  def log():
    return (tmp_path / 'project' / f'slurm-{job}.out').read_text()

  def step():
    lines = files.read_lines(workdir / 'metrics.jsonl')
    return lines[-1]['step'] if lines else 0

  def newest():
    return versions.list_versions(workdir / 'index')[-1]

  def used():
    swaps = files.read_lines(workdir / 'swaps.jsonl')
    return swaps[-1]['version'] if swaps else 0

  def wait(condition, seconds, then):
    wait_for(condition, seconds)
    print(f'{time.monotonic() - began:5.0f} s, step {step():3}: {then}')

  wait(lambda: used() >= 3, 200, 'the third index is used')
  trainer = processes('pretrain', str(workdir))
  (refresher,) = processes('refresh', str(workdir))
  assert len(trainer) == 2
  os.kill(refresher, signal.SIGKILL)
  published = newest()
  wait(lambda: used() > published, 200, 'the refresher came back alone')
  assert processes('pretrain', str(workdir)) == trainer
  os.kill(trainer[1], signal.SIGKILL)
  wait(lambda: 'slurm_job.sh: ' in log(), 120, 'killed: back in the queue')
  assert slurm('squeue', '--noheader', '--format=%T').split() == ['PENDING'] * 2
  saved, published = checkpoints.steps(workdir)[-1], newest()
  wait(lambda: used() > published, 300, 'runs again, with a new index')
  assert f'pretrain: goes on from step {saved}\n' in log()
  # As Slurm does it before the time limit.
  slurm('scancel', '--batch', '--signal=TERM', job)
  wait(lambda: 'slurm_job.sh: trainer 75, ' in log(), 120, 'stopped')
  saved = checkpoints.steps(workdir)[-1]
  assert f'stopped by SIGTERM; saved step {saved}\n' in log()
  wait(lambda: not slurm('squeue', '--noheader'), 500, 'done')
  assert f'pretrain: goes on from step {saved}\n' in log()
  assert step() == STEPS
  assert (workdir / 'finished.json').exists()
