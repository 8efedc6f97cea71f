"""The shell scripts: which Python they take, what they pass on."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / 'launch').glob('*.sh')), ROOT / '.ci' / 'run']


def command(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/bash\n{text}\n')
  path.chmod(0o755)


def bash(script, path, cwd=ROOT):
  return subprocess.run(
    ['/bin/bash', '-c', script],
    env={**os.environ, 'PATH': str(path)},
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=600,
  )


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_parses(script):
  done = subprocess.run(
    ['/bin/bash', '-n', script], capture_output=True, text=True, timeout=600
  )
  assert (done.returncode, done.stderr) == (0, '')


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
  places = [sysconfig.get_path('scripts'), os.environ['PATH']]
  shellcheck = shutil.which('shellcheck', path=os.pathsep.join(places))
  done = subprocess.run(
    [shellcheck, '--external-sources', script],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert (done.returncode, done.stdout) == (0, '')


def test_takes_the_newest_python_that_runs(tmp_path):
  real = sys.executable
  command(tmp_path / 'python3.13', 'echo "not chosen" >&2; exit 127')
  command(tmp_path / 'python3.12', 'exit 1')  # runs, but has no venv, say
  command(tmp_path / 'python3.11', f'exec {real} "$@"')
  command(tmp_path / 'python3', f'exec {real} "$@"')
  done = bash('. launch/environment.sh; find_python', tmp_path)
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout == f'{tmp_path}/python3.11\n'


def test_without_python_it_says_so(tmp_path):
  command(tmp_path / 'python3', 'exit 1')
  script = f'. {ROOT}/launch/environment.sh; make_environment .'
  done = bash(script, tmp_path, tmp_path)
  assert done.returncode == 1
  assert done.stderr.startswith('error: no Python 3.11 or newer')
  assert not (tmp_path / '.venv').exists()


def with_environment(platform, program, **environment):
  """Runs Python on the CPU with the settings of a platform."""
  script = (
    f'set -eu; . launch/env.sh {platform}; export JAX_PLATFORMS=cpu\n'
    f"exec {sys.executable} -c '{program}'"
  )
  return subprocess.run(
    ['/bin/bash', '-c', script],
    env={**os.environ, 'XLA_FLAGS': '', 'LIBTPU_INIT_ARGS': '', **environment},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=600,
  )


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_xla_knows_the_flags_of_a_platform(platform):
  program = (
    'from jax import config, device_count as count; '
    'print(count(), config.jax_compilation_cache_dir)'
  )
  done = with_environment(
    platform,
    program,
    JAX_COMPILATION_CACHE_DIR='given',
    XLA_FLAGS='--xla_force_host_platform_device_count=3',
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == '3 given\n'


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu is not installed: nothing here reads its flags',
)
def test_libtpu_knows_its_flags():
  program = (
    'from jax.experimental import topologies as t; '
    't.get_topology_desc(platform="tpu", topology_name="v4:2x2x1")'
  )
  skip = {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
  done = with_environment('tpu', program, **skip)
  assert done.returncode == 0, done.stderr
  unknown = {'LIBTPU_INIT_ARGS': '--xla_tpu_nonsense=true'}
  done = with_environment('tpu', program, **skip, **unknown)
  assert done.returncode != 0 and 'xla_tpu_nonsense' in done.stderr


@pytest.mark.skipif(
  importlib.util.find_spec('jax_cuda12_plugin') is not None,
  reason='JAX has CUDA here',
)
@pytest.mark.parametrize('call', ['make_mesh(MeshConfig())', 'local_mesh()'])
def test_a_platform_that_jax_has_no_plugin_for_is_not_passed_over(call):
  program = (
    'from realm_jax.config import MeshConfig\n'
    f'from realm_jax.parallel.mesh import local_mesh, make_mesh\n{call}'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    env={**os.environ, 'JAX_PLATFORMS': 'cuda,cpu'},
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert 'ValueError: JAX_PLATFORMS=cuda,cpu: JAX found no cuda' in done.stderr


@pytest.mark.parametrize('platform', ['', 'rocm'])
def test_an_unknown_platform_is_refused(platform):
  done = with_environment(platform, 'print(1)')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == (
    f"error: launch/env.sh: '{platform}', choose from cpu, gpu, tpu\n"
  )


@pytest.fixture
def project(tmp_path):
  """A project whose .venv is there already and records its calls."""
  shutil.copytree(ROOT / 'launch', tmp_path / 'launch')
  shutil.copytree(ROOT / '.ci', tmp_path / '.ci')
  (tmp_path / 'setup.py').write_text('')
  record = 'echo "$(basename "$0") $JAX_PLATFORMS $*" >> calls'
  command(tmp_path / '.venv/bin/python', f'[ "$1" = -c ] || {record}')
  command(tmp_path / '.venv/bin/realm', record)
  return tmp_path


def calls(project, script):
  (project / 'calls').unlink(missing_ok=True)
  done = bash(f'unset JAX_PLATFORMS; {script}', os.environ['PATH'], project)
  assert done.returncode == 0, done.stderr
  return (project / 'calls').read_text().splitlines()


def test_quickstart_installs_once(project):
  run = 'realm cpu quickstart --workdir runs/quickstart'
  install = 'python  -m pip install --quiet --editable .'
  assert calls(project, 'bash launch/quickstart.sh')[1:] == [install, run]
  again = calls(project, 'bash launch/quickstart.sh --seed 3')
  assert again == [f'{run} --seed 3']


def test_tests_leave_the_slow_out_unless_asked(project):
  lint = ['python cpu -m ruff check .', 'python cpu -m ruff format --check .']
  first = calls(project, '.ci/run')
  assert first[1] == 'python  -m pip install --quiet --editable .[test]'
  pytest = 'python cpu -m pytest -m'
  assert first[2:] == [*lint, f'{pytest} not slow and not reference']
  again = calls(project, 'bash launch/test.sh -x --slow tests/test_cli.py')
  assert again == [*lint, f'{pytest} not reference -x tests/test_cli.py']
  compared = calls(project, 'bash launch/test.sh --reference')
  assert compared == [*lint, f'{pytest} reference']
