"""launch/local.sh: several processes, restarts, SIGTERM."""

import os
import signal
import sys
import time

import pytest
import small_runs

from realm_jax.workdir import files


def test_dry_run_prints_the_processes(project):
  status, out, err = project.run(
    *('local.sh', '--processes', '2', '--dry-run', '--'),
    *('ict', '--config', 'a b.py', '--workdir', 'w'),
  )
  assert (status, err) == (0, '')
  verb = "realm ict --config 'a b.py' --workdir w"
  cluster = '--coordinator=127.0.0.1:PORT --num-processes=2'
  assert out.splitlines() == [
    f'{verb} {cluster} --process-id=0',
    f'{verb} {cluster} --process-id=1',
  ]


def test_one_process_has_its_arguments_alone(project):
  project.command('realm', 'echo "$JAX_PLATFORMS $*"')
  run = ('ict', '--workdir', 'w', '--distributed')
  status, out, _ = project.run('local.sh', '--platform', 'tpu', '--', *run)
  assert (status, out) == (0, f'tpu,cpu {" ".join(run)}\n')


@pytest.mark.parametrize(
  'arguments, error',
  [
    (['--proceses', '2'], '--proceses: unknown'),
    (['--processes'], '--processes: needs a value'),
    (['--processes', 'two', '--', 'ict'], '--processes: two, must be a whole'),
    (['--processes', '0', '--', 'ict'], '--processes: 0, must be positive'),
    (['--platform', 'abacus', '--', 'ict'], '--platform: abacus, must be cpu'),
    (['--processes', '2'], 'a verb of realm is needed'),
  ],
)
def test_bad_usage_is_one_line(project, arguments, error):
  assert project.fails('local.sh', *arguments).startswith(f'error: {error}')


@pytest.mark.parametrize(
  'restarts, statuses, end',
  [
    (0, [75, 75, 0], 0),  # stopped, not failed: not counted
    (0, [1], 1),
    (2, [1, 75, 2, 0], 0),
    (1, [1, 3], 3),
  ],
)
def test_starts_again(project, restarts, statuses, end):
  cases = ' '.join(map(str, statuses))
  count = 'n=$(wc -l < $calls)'
  project.command('realm', f'echo "$*" >> $calls; {count}; s=(0 {cases})')
  with open(project.path / 'bin/realm', 'a') as file:
    file.write('exit ${s[$n]}\n')
  run = ('--restarts', str(restarts), '--', 'ict')
  status, _, err = project.run('local.sh', *run)
  assert (status, len(project.calls())) == (end, len(statuses))
  assert err.count('starting again') == len(statuses) - 1


def test_one_that_fails_ends_the_others(project):
  project.command(
    'realm',
    """[[ $* = *--process-id=1* ]] && exit 3
trap 'echo ended >> $calls; exit 1' TERM
while :; do sleep 0.1; done""",
  )
  status, _, _ = project.run('local.sh', '--processes', '3', '--', 'ict')
  assert (status, project.calls()) == (3, ['ended'] * 2)


@pytest.mark.parametrize(
  'number, send',
  [
    (signal.SIGTERM, os.kill),
    (signal.SIGINT, os.kill),
    (signal.SIGINT, os.killpg),  # Ctrl-C: to all that the script started too
  ],
)
def test_a_signal_reaches_all_and_ends_it(project, number, send):
  project.command(
    'realm',
    """trap 'sleep 0.3; echo saved >> $calls; exit 75' TERM
echo started >> $calls
while :; do sleep 0.1; done""",
  )
  run = ('--processes', '2', '--restarts', '5', '--', 'ict')
  process = project.start('local.sh', *run)
  deadline = time.monotonic() + 60
  while project.calls() != ['started'] * 2:
    assert time.monotonic() < deadline
    time.sleep(0.05)
  send(process.pid, number)
  process.communicate(timeout=60)
  assert process.returncode == 75
  assert project.calls() == ['started'] * 2 + ['saved'] * 2


def test_two_real_processes_are_one_run(project):
  real = f'exec {sys.executable} -m realm_jax "$@"'
  project.command('realm', real, '.venv/bin')
  config = small_runs.write_experiment(
    project.path / 'ict.py', small_runs.make_corpus(project.path), num_steps=3
  )
  status, _, err = project.run(
    *('local.sh', '--processes', '2', '--'),
    *('ict', '--config', config, '--workdir', str(project.path / 'w')),
    **small_runs.environment(project.path / 'cache'),
  )
  assert status == 0, err
  assert 'ict 3/3' in err
  assert files.read_lines(project.path / 'w' / 'metrics.jsonl')[-1]['step'] == 3
