"""Several processes as one run, for real: on loopback, with gloo."""

import json
import signal
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import small_runs

from realm_jax.workdir import checkpoints, files, versions

STEPS = 20
IN_PROCESS = {'where': 'in_process', 'every': 7}
SIZES = small_runs.SIZES | {'dropout': 0.0}
# Of BERT's initializer all blocks have almost one embedding, and rounding says
# which are retrieved.
APART = SIZES | {'initializer_range': 0.2}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """With a corpus, questions, and an experiment file for each stage."""
  path = tmp_path_factory.mktemp('processes')
  corpus = small_runs.make_corpus(path)
  questions = small_runs.write_lines(
    path / 'questions.jsonl', map(small_runs.question, range(20))
  )
  base = {
    'model': SIZES,
    'index': {'rows_dtype': 'float32'},
    'num_steps': STEPS,
  }
  stages = {
    'mlm': {},
    'ict': {},
    'pretrain': {'model': APART, 'refresh': IN_PROCESS},
    'finetune': {
      'model': APART,
      'questions': questions,
      'dev_questions': questions,
      'eval_every': 10,
    },
  }
  for stage, changes in stages.items():
    keys = {**base, **changes}
    small_runs.write_experiment(path / f'{stage}.py', corpus, **keys)
  return path


def arguments(folder, stage, workdir, mesh=(-1, 1), **keys):
  keys = {'mesh.data': mesh[0], 'mesh.model': mesh[1], **keys}
  return [
    stage,
    *('--config', str(folder / f'{stage}.py')),
    *('--workdir', str(folder / workdir)),
    *(f'--config.{key}={value}' for key, value in keys.items()),
  ]


def alone(arguments, cache, devices=1):
  process = small_runs.start(
    arguments, cache, devices, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )
  statuses, said = small_runs.finish([process])
  assert statuses == [0], said


def together(arguments, cache, count, devices=1):
  statuses, said = small_runs.finish(
    small_runs.start_cluster(arguments, cache, count, devices)
  )
  assert statuses == [0] * count, said
  return said


def losses(workdir):
  return [
    (line['step'], line['loss'])
    for line in files.read_lines(workdir / 'metrics.jsonl')
    if 'loss' in line
  ]


@pytest.fixture(scope='module')
def one_device(folder, cache):
  """one_device(stage): losses of the stage on one device."""
  made = {}

  def run(stage):
    if stage not in made:
      alone(arguments(folder, stage, f'one_{stage}'), cache)
      made[stage] = losses(folder / f'one_{stage}')
    return made[stage]

  return run


def check_layout(folder, cache, one_device, stage, count, devices, mesh):
  workdir = f'{stage}_{count}_{devices}_{mesh[0]}_{mesh[1]}'
  run = arguments(folder, stage, workdir, mesh)
  if count == 1:
    alone(run, cache, devices)
  else:
    said = together(run, cache, count, devices)
    assert f'{stage} {STEPS}/{STEPS}' in said[0]
    assert not any(f'{stage} {STEPS}/' in text for text in said[1:])
  found, want = losses(folder / workdir), one_device(stage)
  assert [step for step, _ in found] == [*range(1, STEPS + 1)]
  np.testing.assert_allclose(
    [loss for _, loss in found], [loss for _, loss in want], rtol=1e-5
  )


# The rows of the index are 8 and 10 here: on 4 devices 2 or 3 rows each.
@pytest.mark.parametrize(
  'stage, count, devices, mesh',
  [
    ('pretrain', 2, 2, (2, 2)),
    ('ict', 4, 1, (2, 2)),  # `model` reaches over two processes
  ],
)
def test_layouts_give_equal_losses(
  folder, cache, one_device, stage, count, devices, mesh
):
  check_layout(folder, cache, one_device, stage, count, devices, mesh)


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['mlm', 'ict', 'pretrain', 'finetune'])
@pytest.mark.parametrize(
  'count, devices, mesh',
  [
    *((1, 8, mesh) for mesh in ((8, 1), (4, 2), (2, 4))),
    *((2, 4, mesh) for mesh in ((8, 1), (4, 2), (2, 4))),
    *((4, 2, mesh) for mesh in ((8, 1), (4, 2), (2, 4))),
    (2, 1, (2, 1)),
    (4, 1, (4, 1)),
    (1, 2, (1, 2)),
  ],
)
def test_all_layouts_give_equal_losses(
  folder, cache, one_device, stage, count, devices, mesh
):
  check_layout(folder, cache, one_device, stage, count, devices, mesh)


def wait_for_step(workdir, step, cluster):
  deadline = time.monotonic() + 120
  while not any(
    line['step'] >= step for line in files.read_lines(workdir / 'metrics.jsonl')
  ):
    assert time.monotonic() < deadline, 'no such step'
    assert all(process.poll() is None for process in cluster)
    time.sleep(0.05)


def test_stopped_and_resumed_equals_uninterrupted(folder, cache):
  # Steps without end: where SIGTERM stops them is left to chance. All are
  # saved: to save must not keep SIGTERM from the processes.
  endless = {'num_steps': 100000}
  run = small_runs.start_cluster(
    arguments(folder, 'pretrain', 'stopped', checkpoint_every=1, **endless),
    cache,
    2,
  )
  wait_for_step(folder / 'stopped', 10, run)
  run[1].send_signal(signal.SIGTERM)  # not the one that writes
  statuses, said = small_runs.finish(run)
  assert statuses == [75, 75], said
  stopped = checkpoints.steps(folder / 'stopped')[-1]
  assert f'stopped by SIGTERM; saved step {stopped}' in said[0]
  assert not (folder / 'stopped' / 'finished.json').exists()
  # The schedule of the learning rate depends on num_steps: the same here.
  last = {'checkpoint_every': stopped + 4, **endless}
  files_of = {}
  for name, count, devices in (('same', 2, 1), ('other', 1, 2)):
    subprocess.run(['cp', '-r', folder / 'stopped', folder / name], check=True)
    files_of[name] = go_on(folder, name, cache, count, devices, stopped, last)
  whole = go_on(folder, 'whole', cache, 2, 1, stopped, last)
  assert files_of['same'] == whole
  np.testing.assert_allclose(
    [loss for _, loss in files_of['other']],
    [loss for _, loss in whole],
    rtol=1e-5,
  )


def go_on(folder, name, cache, count, devices, stopped, keys):
  """Runs to 4 steps after `stopped`; the losses up to there."""
  command = arguments(folder, 'pretrain', name, **keys)
  if count == 1:
    run = [small_runs.start(command, cache, devices, stderr=subprocess.PIPE)]
  else:
    run = small_runs.start_cluster(command, cache, count, devices)
  wait_for_step(folder / name, stopped + 4, run)
  run[0].send_signal(signal.SIGTERM)
  statuses, said = small_runs.finish(run)
  assert statuses == [75] * count, said
  return [pair for pair in losses(folder / name) if pair[0] <= stopped + 4]


def test_trainer_and_refresher_of_two_processes_each(folder, cache):
  workdir = folder / 'separate'
  keys = {
    'refresh.where': 'separate',
    'checkpoint_every': 10,
    'num_steps': 100000,
  }
  trainer = small_runs.start_cluster(
    arguments(folder, 'pretrain', 'separate', **keys), cache, 2
  )
  follow = ['refresh', '--workdir', str(workdir), '--follow']
  refresher = small_runs.start_cluster(follow, cache, 2)
  deadline = time.monotonic() + 200
  while len(files.read_lines(workdir / 'swaps.jsonl')) < 3:
    assert time.monotonic() < deadline
    assert not any(p.poll() for p in trainer + refresher)
    time.sleep(0.1)
  trainer[0].send_signal(signal.SIGTERM)
  statuses, said = small_runs.finish(trainer)
  assert statuses == [75, 75], said
  refresher[1].send_signal(signal.SIGTERM)
  statuses, said = small_runs.finish(refresher)
  assert statuses == [75, 75], said
  for version in versions.list_versions(workdir / 'index'):
    manifest = versions.read_manifest(workdir / 'index', version)
    assert len(manifest.checksums['rows']) == 2  # a chunk of each process
    record = checkpoints.read_record(workdir, manifest.checkpoint_step)
    assert manifest.embedder_digest == record['embedder_digest']
  swaps = files.read_lines(workdir / 'swaps.jsonl')
  # A trainer takes the newest, which may pass over one.
  used = [swap['version'] for swap in swaps]
  assert used[0] == 1 and used == sorted(set(used))
  for line in files.read_lines(workdir / 'metrics.jsonl'):
    last = [swap for swap in swaps if swap['step'] < line['step']][-1]
    assert line['index_step'] == last['checkpoint_step']


def test_two_processes_evaluate_and_embed_as_one(folder, cache):
  alone(arguments(folder, 'finetune', 'finetuned'), cache)
  workdir, questions = folder / 'finetuned', folder / 'questions.jsonl'
  texts = small_runs.write_lines(
    folder / 'texts.jsonl', [{'text': f'text {n} of Lund'} for n in range(40)]
  )

  def evaluate(name):
    return [
      'evaluate',
      *('--workdir', str(workdir), '--questions', str(questions)),
      *('--output', str(folder / name)),
    ]

  def embed(name):
    return [
      'embed',
      *('--workdir', str(workdir), '--input', texts),
      *('--output', str(folder / name)),
    ]

  alone(evaluate('eval_1'), cache)
  together(evaluate('eval_2'), cache, 2, 2)
  alone(embed('embed_1.npy'), cache)
  together(embed('embed_2.npy'), cache, 2, 2)
  one, two = (
    files.read_json(folder / name / 'metrics.json')
    for name in ('eval_1', 'eval_2')
  )
  assert one == two
  one, two = (
    files.read_lines(folder / name / 'predictions.jsonl')
    for name in ('eval_1', 'eval_2')
  )
  assert [line['prediction'] for line in one] == [
    line['prediction'] for line in two
  ]
  np.testing.assert_allclose(
    np.load(folder / 'embed_2.npy'),
    np.load(folder / 'embed_1.npy'),
    rtol=1e-4,
    atol=1e-5,
  )


AGREE = """
  import sys
  from realm_jax.parallel import processes

  processes.start(processes.Cluster(False, sys.argv[1], 2, int(sys.argv[2])))
  for n in range(20):
    assert processes.from_first(n) == n
    assert processes.gather([n]) == [[n], [n]]
    processes.barrier()
  if processes.is_first():
    print(len(processes._This.client.key_value_dir_get('realm/')))
  processes.end(0, '')
"""

FAILS = """
  import sys, time
  from realm_jax.parallel import processes

  processes.start(processes.Cluster(False, sys.argv[1], 2, int(sys.argv[2])))
  if sys.argv[2:] == [sys.argv[3]] * 2:
    time.sleep(3)  # the other one has ended its work
    processes.end(1, 'disk full')
  processes.end(0, '')
"""


def two(code, *more):
  """Runs a program as two processes; their statuses, outputs and errors."""
  program, coordinator = textwrap.dedent(code), small_runs.free_address()
  cluster = [
    subprocess.Popen(
      [sys.executable, '-c', program, coordinator, str(place), *more],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for place in range(2)
  ]
  said = [process.communicate(timeout=120) for process in cluster]
  return [process.returncode for process in cluster], said


def test_what_all_have_read_is_forgotten():
  statuses, said = two(AGREE)
  assert statuses == [0, 0]
  # Signs of life of both, and what was told last.
  assert int(said[0][0]) <= 8


@pytest.mark.parametrize('place', [0, 1])
def test_who_has_ended_hears_of_one_that_fails_later(place):
  statuses, said = two(FAILS, str(place))
  assert statuses == [1, 1]
  assert said[1 - place][1].splitlines()[-1] == (
    f'error: process {place}: disk full'
  )


def test_a_hanging_process_is_named(folder, cache):
  command = arguments(folder, 'ict', 'hangs', num_steps=100000)
  run = small_runs.start_cluster([*command, '--hang-seconds=30'], cache, 2)
  wait_for_step(folder / 'hangs', 5, run)
  run[1].send_signal(signal.SIGSTOP)
  said = run[0].communicate(timeout=120)[1]
  run[1].kill()
  small_runs.finish(run[1:])
  assert run[0].returncode == 1
  last = said.splitlines()[-1]
  assert last.startswith(
    'error: the others wait for process 1, which hangs at "step '
  )
  assert last.endswith('for 30 s')


def test_a_killed_process_ends_the_run(folder, cache):
  command = arguments(folder, 'ict', 'killed', num_steps=100000)
  run = small_runs.start_cluster(command, cache, 2)
  wait_for_step(folder / 'killed', 5, run)
  run[1].kill()
  statuses, said = small_runs.finish(run)
  assert statuses == [1, -9]
  assert 'error: process 1 is gone: ' in said[0].splitlines()[-1]


def test_without_the_first_process_the_others_end(folder, cache):
  """It is the coordinator: JAX itself ends the others, in its own words."""
  command = arguments(folder, 'ict', 'beheaded', num_steps=100000)
  run = small_runs.start_cluster(command, cache, 2)
  wait_for_step(folder / 'beheaded', 5, run)
  run[0].kill()
  statuses, said = small_runs.finish(run, timeout=60)
  assert statuses in ([-9, -signal.SIGABRT], [-9, 1])
  assert 'another task died' in said[1] or 'process 0 is gone' in said[1]


def test_chosen_steps_are_traced_once(folder, cache):
  command = arguments(folder, 'ict', 'traced', num_steps=3)
  said = together([*command, '--profile=2,40'], cache, 2)
  assert 'this run did not take step 40' in said[0]
  assert 'this run did not take' not in said[1]
  profile = folder / 'traced' / 'profile'
  [trace] = profile.glob('*/plugins/*/*/*.xplane.pb')
  assert trace.relative_to(profile).parts[0] == '2'
  assert [step for step, _ in losses(folder / 'traced')] == [1, 2, 3]


def test_processes_that_disagree_are_refused(folder, cache):
  command = arguments(folder, 'ict', 'disagree')
  last = ['--config.batch_size=16']
  run = small_runs.start_cluster(command, cache, 2, last=last)
  statuses, said = small_runs.finish(run)
  assert statuses == [2, 2], said
  error = 'config.batch_size: process 1 has 16, process 0 has 8'
  assert all(error in text.splitlines()[-1] for text in said), said
  assert not (folder / 'disagree').exists()


def test_processes_with_different_corpora_are_refused(folder, cache):
  places = [folder / 'machine_0', folder / 'machine_1']
  for place, count in zip(places, (30, 31), strict=True):
    place.mkdir()
    small_runs.make_corpus(place, count)
  here = '/proc/self/cwd/z'  # one path, as on two machines, of two directories
  command = [*arguments(folder, 'ict', 'foreign'), f'--config.corpus={here}']
  run = small_runs.start_cluster(command, cache, 2, places=places)
  statuses, said = small_runs.finish(run)
  assert statuses == [2, 2], said
  first, second = (
    files.read_json(place / 'z' / 'manifest.json')['fingerprint']
    for place in places
  )
  error = f'corpus {here}: process 1 has {second!r}, process 0 has {first!r}'
  assert all(error in text.splitlines()[-1] for text in said), said
  assert not (folder / 'foreign').exists()


def test_a_named_coordinator_is_the_whole_truth(folder, cache):
  script = (
    'import sys, jax; from realm_jax.parallel import processes as p; '
    'p.start(p.Cluster(False, sys.argv[1], 1, 0)); '
    "print(jax.config.values['jax_cuda_visible_devices'])"
  )
  with socket.create_server(('127.0.0.1', 0)) as free:
    port = free.getsockname()[1]
  slurm = {
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': '1',
    'SLURM_PROCID': '0',
    'SLURM_LOCALID': '0',
  }
  done = subprocess.run(
    [sys.executable, '-c', script, f'127.0.0.1:{port}'],
    env={**small_runs.environment(cache), **slurm},
    capture_output=True,
    text=True,
    timeout=120,
  )
  # Not device 0 alone, which is what JAX makes of Slurm's variables.
  assert done.stdout == 'all\n', done.stderr


def test_a_missing_coordinator_is_no_hang(folder, cache):
  impatient = (
    'import sys; from realm_jax import cli; '
    'from realm_jax.parallel import processes; '
    'processes._START_SECONDS = 3; sys.exit(cli.main(sys.argv[1:]))'
  )
  flags = ['--coordinator=127.0.0.1:9', '--num-processes=2', '--process-id=1']
  done = subprocess.run(
    [
      *(sys.executable, '-c', impatient),
      *arguments(folder, 'ict', 'missing'),
      *flags,
    ],
    env=small_runs.environment(cache),
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 1  # it may be there the next time
  assert 'error: 127.0.0.1:9: not all processes were there' in done.stderr
  assert not (folder / 'missing').exists()


@pytest.mark.parametrize(
  'flags, error',
  [
    (['--coordinator=h:1'], '--num-processes: is needed with --coordinator'),
    (['--process-id=0'], '--coordinator: is needed with --process-id'),
    (['--num-processes=0'], '--coordinator: is needed with --num-processes'),
    (
      ['--distributed', '--process-id=0'],
      '--process-id: not with --distributed',
    ),
    (
      ['--coordinator=h:1', '--num-processes=2', '--process-id=2'],
      '--process-id: 2, must be from 0',
    ),
    (['--distributed', '--hang-seconds=0'], '--hang-seconds: 0.0, must be'),
  ],
)
def test_flags_that_do_not_fit(folder, capsys, flags, error):
  from realm_jax import cli

  assert cli.main([*arguments(folder, 'ict', 'flags'), *flags]) == 2
  said = capsys.readouterr().err
  assert said.startswith(f'error: {error}')
  assert said.count('\n') == 1


def test_without_a_cluster_distributed_says_so(folder, cache):
  process = small_runs.start(
    [*arguments(folder, 'ict', 'lonely'), '--distributed'],
    cache,
    stderr=subprocess.PIPE,
  )
  statuses, said = small_runs.finish([process])
  assert statuses == [2], said
  assert 'error: the cluster of --distributed: ' in said[0]


def test_results_are_written_once(folder, cache):
  """What a verb prints comes from the first process alone."""
  if not (folder / 'one_ict').exists():
    alone(arguments(folder, 'ict', 'one_ict'), cache)
  workdir = str(folder / 'one_ict')
  together(['refresh', '--workdir', workdir], cache, 2)
  run = small_runs.start_cluster(
    [
      'evaluate',
      *('--workdir', workdir, '--questions', str(folder / 'questions.jsonl')),
      *('--output', str(folder / 'eval_ict')),
    ],
    cache,
    2,
  )
  out = [process.communicate(timeout=200)[0] for process in run]
  assert json.loads(out[0])['n'] == 20
  assert out[1] == ''
