"""The package as a whole: imports, requirements, what is installed."""

import ast
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import realm_jax

ROOT = pathlib.Path(__file__).parents[1]
FLOORS = (
  (
    'index_config',
    'refresh_config',
  ),
  ('config', 'experiment'),
  ('text', 'parallel'),
  ('corpus', 'workdir', 'scores'),
  ('data',),
  ('model',),
  ('index',),
  ('train',),
  ('evaluate',),
  ('jobs',),
  ('flags',),
  ('verbs',),
  ('cli',),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted((ROOT / 'realm_jax').rglob('*.py'))


def setup_arguments():
  """The keywords of setup.py's call, those that are literals."""
  tree = ast.parse((ROOT / 'setup.py').read_text())
  [call] = [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('.setup')
  ]
  return {
    keyword.arg: ast.literal_eval(keyword.value)
    for keyword in call.keywords
    if keyword.arg in ('install_requires', 'extras_require', 'package_data')
  }


def imports(path):
  """Dotted names that a file imports, `from a import b` as a.b."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: a relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.name))
def test_imports_point_down(path):
  parts = path.relative_to(ROOT / 'realm_jax').with_suffix('').parts
  if parts[0] in ('__init__', '__main__'):
    return
  for name in imports(path):
    if name.startswith('realm_jax.') and name != 'realm_jax.__version__':
      room = name.split('.')[1]
      assert FLOOR[room] <= FLOOR[parts[0]], f'{path}: imports {name}'


def test_requirements_are_declared():
  required = {
    canonicalize_name(Requirement(line).name)
    for line in setup_arguments()['install_requires']
  }
  known = importlib.metadata.packages_distributions()
  for path in FILES:
    for name in imports(path):
      top = name.split('.')[0]
      if path.name == 'hf_files.py' and top in ('torch', 'tensorflow'):
        continue  # readers of old files, asked for where one is given
      assert top not in ('tensorflow', 'clu'), f'{path}: imports {name}'
      if top == 'realm_jax' or top in sys.stdlib_module_names:
        continue
      distributions = {canonicalize_name(d) for d in known[top]}
      assert distributions & required, f'{path}: {name} is not in setup.py'


def test_tpu_requirements_are_pinned_and_enough():
  pins = {}
  for line in (ROOT / 'requirements-tpu.txt').read_text().splitlines():
    if not line.startswith('#'):
      requirement = Requirement(line)
      assert re.fullmatch(r'==[\w.]+', str(requirement.specifier)), line
      pins[canonicalize_name(requirement.name)] = requirement
  assert pins['jax'].extras == {'tpu'}
  arguments = setup_arguments()
  for line in (
    arguments['install_requires'] + arguments['extras_require']['tpu']
  ):
    requirement = Requirement(line)
    pin = pins[canonicalize_name(requirement.name)]
    version = str(pin.specifier).removeprefix('==')
    assert requirement.specifier.contains(version), f'{line}: {pin}'


def test_what_is_not_python_is_installed():
  declared = {
    ROOT.joinpath(*package.split('.'), name)
    for package, names in setup_arguments()['package_data'].items()
    for name in names
  }
  others = {
    path
    for path in (ROOT / 'realm_jax').rglob('*')
    if path.is_file() and path.suffix not in ('.py', '.pyc')
  }
  assert others == declared


def test_pyproject_configures_tools_only():
  values = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  assert set(values) == {'tool'}
  assert values['tool']['pytest']['ini_options']['filterwarnings'][0] == 'error'


def test_licence_is_apache_2():
  text = (ROOT / 'LICENSE').read_text()
  assert 'Version 2.0, January 2004' in text
  assert 'END OF TERMS AND CONDITIONS' in text


def test_console_script_is_installed():
  """`pip install -e .` has made `realm`, of this version."""
  assert importlib.metadata.version('realm-jax') == realm_jax.__version__
  script = pathlib.Path(sys.executable).parent / 'realm'
  done = subprocess.run(
    [script, '--version'], capture_output=True, text=True, timeout=600
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout == f'realm {realm_jax.__version__}\n'
