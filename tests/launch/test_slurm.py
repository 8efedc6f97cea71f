"""launch/slurm.sh and the job's script, beside commands that play Slurm."""

import signal
import time

import pytest

RUN = ['pretrain', '--config', 'c.py', '--workdir', 'w']
JOB = ['slurm_job.sh', 'cpu', '3', *RUN]
HET = {
  'SLURM_JOB_ID': '4097',
  'SLURM_HET_SIZE': '2',
  'SLURM_JOB_ID_HET_GROUP_1': '4098',
  'SLURM_JOB_NODELIST_HET_GROUP_0': 'a[1-2]',
  'SLURM_JOB_NUM_NODES_HET_GROUP_0': '2',
  'SLURM_JOB_NODELIST_HET_GROUP_1': 'b1',
  'SLURM_JOB_NUM_NODES_HET_GROUP_1': '1',
}


def test_dry_run_prints_one_job_of_two_parts(project):
  project.record('sbatch')
  status, out, err = project.run(
    *('slurm.sh', '--trainer', '--nodes=4 --gres=gpu:8', '--dry-run'),
    *('--refresher', '--nodes=2 --gres=gpu:4', '--restarts', '5', '--', *RUN),
  )
  assert (status, err, project.calls()) == (0, '', [])
  part = (
    '--job-name=realm --requeue --open-mode=append --signal=B:TERM@120 '
    '--ntasks-per-node=1'
  )
  assert out == (
    f'sbatch {part} --nodes=4 --gres=gpu:8 : {part} --nodes=2 --gres=gpu:4 '
    f'launch/slurm_job.sh gpu 5 {" ".join(RUN)}\n'
  )


def test_without_a_refresher_it_is_a_plain_job(project):
  project.record('sbatch')
  project.run('slurm.sh', '--refresher', '', '--', 'ict', '--workdir=w')
  (call,) = project.calls()
  assert ' : ' not in call
  assert call.endswith('--nodes=1 launch/slurm_job.sh gpu 3 ict --workdir=w')


@pytest.mark.parametrize(
  'arguments, error',
  [
    (['--nodes', '4'], '--nodes: unknown'),
    (['--restarts', '-1', '--', *RUN], '--restarts: -1, must be a whole'),
    (['--', 'pretrain'], '--workdir: is missing'),
    ([], 'a verb of realm is needed'),
  ],
)
def test_bad_usage_is_one_line(project, arguments, error):
  assert project.fails('slurm.sh', *arguments).startswith(f'error: {error}')


@pytest.fixture
def slurm(project):
  """slurm(trainer, refresher): the bash that each of the parts runs."""
  project.command(
    'scontrol',
    """if [ $1 = show ]; then printf '%s\\n' ${3:0:1}1; echo more
else echo "scontrol $*" >> $calls; fi""",
  )
  project.command('scancel', 'echo "scancel $*" >> $calls; touch stop-$2')
  project.command('squeue', 'cat state')
  (project.path / 'state').write_text('RUNNING\nRUNNING\n')

  def behave(trainer, refresher='exit 0'):
    project.command(
      'srun',
      f"""echo "srun $*" >> $calls
if [[ $1 != --het-group=1 ]]; then {trainer}
else {refresher}; fi""",
    )

  return behave


def sruns(project):
  return [call for call in project.calls() if call.startswith('srun')]


def others(project):
  return [call for call in project.calls() if not call.startswith('srun')]


UNTIL_STOPPED = 'until [ -e stop-4098 ]; do sleep 0.1; done; exit 75'


def test_each_part_is_a_run_of_its_own(project, slurm):
  slurm('exit 0')
  assert project.run(*JOB, **HET)[0] == 0
  trainer, refresher = sorted(sruns(project))
  assert trainer.startswith('srun --het-group=0 --ntasks-per-node=1 ')
  assert trainer.endswith(
    'realm pretrain --config c.py --workdir w '
    '--coordinator=a1:61442 --num-processes=2'
  )
  assert refresher.startswith('srun --het-group=1 ')
  assert refresher.endswith(
    'realm refresh --workdir w --follow '
    '--coordinator=b1:61443 --num-processes=1'
  )
  assert others(project) == []


def test_a_plain_job_has_no_refresher(project, slurm):
  slurm('exit 0')
  plain = {'SLURM_JOB_NODELIST': 'a[1-2]', 'SLURM_JOB_NUM_NODES': '2'}
  assert project.run(*JOB, SLURM_JOB_ID='7', **plain)[0] == 0
  (call,) = sruns(project)
  assert '--het-group' not in call
  assert '--coordinator=a1:61454 --num-processes=2' in call


@pytest.mark.parametrize(
  'trainer, restarted, state, end, requeued',
  [
    (75, 0, 'RUNNING', 75, True),
    (75, 9, 'RUNNING', 75, True),
    (75, 0, 'CANCELLED', 75, False),
    (137, 2, 'RUNNING', 75, True),
    (1, 3, 'RUNNING', 1, False),
    (2, 0, 'RUNNING', 2, False),
  ],
)
def test_which_jobs_are_put_back(
  project, slurm, trainer, restarted, state, end, requeued
):
  slurm(f'exit {trainer}', UNTIL_STOPPED)
  (project.path / 'state').write_text(f'{state}\n')
  status, _, _ = project.run(*JOB, **HET, SLURM_RESTART_COUNT=str(restarted))
  assert status == end
  requeue = ['scontrol requeue 4097'] if requeued else []
  assert others(project) == ['scancel --signal=TERM 4098', *requeue]


def test_a_refresher_that_fails_is_started_again_alone(project, slurm):
  slurm('sleep 4', 'echo x >> tries; exit $((3 - $(wc -l < tries)))')
  status, _, err = project.run(*JOB, **HET)
  assert status == 0, err
  assert len(sruns(project)) == 4
  assert others(project) == []


def test_sigterm_reaches_both_and_puts_the_job_back(project, slurm):
  slurm(*[UNTIL_STOPPED.replace('4098', '4097')] * 2)
  process = project.start(*JOB, **HET)
  deadline = time.monotonic() + 60
  while len(sruns(project)) < 2:
    assert time.monotonic() < deadline
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  err = process.communicate(timeout=60)[1]
  assert process.returncode == 75
  assert 'slurm_job.sh: trainer 75, refresher 75, job RUNNING' in err
  assert others(project)[0] == 'scancel --signal=TERM 4097'
  assert others(project)[-1] == 'scontrol requeue 4097'
