"""The command line: parsing, exit status, what is called with what."""

import errno
import importlib
import inspect
import json
import os
import subprocess
import sys
import types

import pytest

from realm_jax import cli, config

VERBS = (
  *('quickstart', 'prepare', 'config', 'mlm', 'ict', 'pretrain', 'finetune'),
  *('refresh', 'index', 'corpus', 'evaluate', 'search', 'ask', 'embed'),
)


@pytest.fixture
def experiment(tmp_path):
  path = tmp_path / 'experiment.py'
  path.write_text(
    'def get_config(arg="none"):\n'
    '  return {"corpus": arg, "model": {"num_layers": 2}}\n'
  )
  return str(path)


@pytest.fixture
def calls(monkeypatch):
  """Puts a recorder in place of a function of a module."""
  made = []

  def replace(module, function, result=None):
    def record(*args, **kwargs):
      made.append((args, kwargs))
      if isinstance(result, Exception):
        raise result
      return result

    fake = types.ModuleType(module)
    setattr(fake, function, record)
    monkeypatch.setitem(sys.modules, module, fake)
    package, _, name = module.rpartition('.')
    monkeypatch.setattr(sys.modules[package], name, fake, raising=False)
    return made

  for package in ('corpus', 'evaluate', 'index', 'jobs', 'train'):
    importlib.import_module(f'realm_jax.{package}')
  return replace


def realm(*arguments, **options):
  return subprocess.run(
    [sys.executable, '-m', 'realm_jax', *arguments],
    capture_output=True,
    text=True,
    timeout=600,
    **options,
  )


def assert_error(capsys, *words):
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.startswith('error: ')
  assert captured.err.count('\n') == 1 and captured.err.endswith('\n')
  for word in words:
    assert word in captured.err


def test_help_lists_the_verbs_without_importing_jax():
  code = (
    'import sys; from realm_jax import cli\n'
    'try: cli.main(["--help"])\n'
    'except SystemExit as e: assert e.code == 0\n'
    'assert "jax" not in sys.modules and "numpy" not in sys.modules'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr
  for verb in VERBS:
    assert f'\n    {verb}' in done.stdout


@pytest.mark.parametrize('verb', [*VERBS, 'corpus add', 'corpus remove'])
def test_help_of_a_verb_shows_every_default(verb, capsys):
  with pytest.raises(SystemExit) as exit:
    cli.main([*verb.split(), '--help'])
  assert exit.value.code == 0
  text = capsys.readouterr().out.partition('\nconfig keys')[0]
  entries = text.split('\n  --')[1:]
  assert entries
  for entry in entries:
    assert '%' not in entry
    assert 'default' in entry or '(required)' in entry


def test_help_lists_the_config_keys(capsys):
  with pytest.raises(SystemExit):
    cli.main(['pretrain', '--help'])
  text = capsys.readouterr().out
  assert '--config.optimizer.learning_rate=3e-05\n' in text
  # As config.py has them: what follows on the line, and what stands above it.
  assert '--config.batch_size=32  # global\n' in text
  assert '--config.pooling=cls  {cls,mean}\n' in text
  assert '\n  # The run.\n  --config.seed=0\n' in text
  keys = [
    line.partition('=')[0].removeprefix('  --config.')
    for line in text.splitlines()
    if line.startswith('  --config.')
  ]
  every = config.Config().to_dict().items()
  assert keys == [
    *(key for key, value in every if not isinstance(value, dict)),
    *(
      f'{section}.{key}'
      for section, values in every
      if isinstance(values, dict)
      for key in values
    ),
  ]


def test_version():
  done = realm('--version')
  assert (done.returncode, done.stdout) == (0, 'realm 0.1.0\n')


def test_config_prints_the_resolved_values(experiment, capsys):
  status = cli.main(
    [
      *('config', '--config', f'{experiment}:wiki', '--print'),
      *('--config.optimizer.learning_rate=1e-3', '--config.mesh.data', '-1'),
      *('--config.questions', 'a=b', '--config.closed_book=true'),
    ]
  )
  assert status == 0
  values = json.loads(capsys.readouterr().out)
  assert values['corpus'] == 'wiki'
  assert values['model']['num_layers'] == 2
  assert values['optimizer']['learning_rate'] == 1e-3
  assert values['mesh']['data'] == -1
  assert values['questions'] == 'a=b'
  assert values['closed_book'] is True


def test_config_without_print_is_silent(experiment, capsys):
  assert cli.main(['config', f'--config={experiment}']) == 0
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
  'arguments, words',
  [
    ('', ['VERB']),
    ('nonsense', ['nonsense', 'pretrain']),
    ('index --workdir w --nonsense=3', ['--nonsense=3']),
    ('index --work w', ['--workdir']),
    ('search --workdir w', ['--query']),
    ('search --workdir w --query q --k many', ['--k', 'many']),
    ('search --workdir w --query q --config.seed=1', ['--config.seed']),
    ('refresh --workdir w --once --follow', ['--once', '--follow']),
    ('mlm --config c --workdir w --profile=', ['--profile', "''", '10,20']),
    ('mlm --config c --workdir w --profile 5,0', ['--profile', "'5,0'"]),
    ('mlm --config c --workdir w --profile=-1', ['--profile', "'-1'"]),
    ('search --workdir w --query q --profile 3', ['--profile']),
    ('prepare --input a --output c', ['--vocab', '--train-vocab']),
    ('prepare --input a --output c --vocab v --train-vocab 9', ['--vocab']),
    ('corpus', ['add|remove']),
    ('corpus remove --corpus c', ['--document']),
    ('config --config missing.py', ['missing.py']),
    ('config --config missing.py --config.seed', ['--config.seed']),
    ('config --config.seed=1', ['--config']),
    ('index --workdir w --kind exact', ['--kind exact; see realm index --h']),
    ('index --workdir missing', ['missing', 'workdir']),
  ],
)
def test_bad_usage(arguments, words, capsys):
  assert cli.main(arguments.split()) == 2
  assert_error(capsys, *words)


@pytest.mark.parametrize(
  'text, words',
  [
    ('def get_config(:\n', ['line 1']),
    ('import no_such_module\n', ['no_such_module']),
    ('x = 1\n', ['get_config']),
    ('def get_config():\n  return {"seed": "a"}\n', ['seed', 'integer']),
    ('x = 1\ny = z\n', ['bad.py line 2: NameError', "'z'"]),
    ('def get_config():\n  return {}["a"]\n', ['bad.py line 2: KeyError']),
    (
      'def get_config():\n  return {"seed": int("x")}\n',
      ['bad.py line 2: invalid literal'],
    ),
    ('def get_config():\n  return {1: 2}\n', ['config.1: no such key']),
    ('def get_config():\n  return {"model": 3}\n', ['model: expected a sec']),
    ('def get_config(name):\n  return {}\n', ['bad.py: TypeError', "'name'"]),
    ('def get_config():\n  pass\n', ['gave NoneType, expected an ml_coll']),
    (
      'def get_config():\n  return {"score_temperature": float("nan")}\n',
      ['config.score_temperature: nan, must be finite'],
    ),
  ],
)
def test_bad_experiment(tmp_path, text, words, capsys):
  path = tmp_path / 'bad.py'
  path.write_text(text)
  assert cli.main(['config', '--config', str(path)]) == 2
  assert_error(capsys, *words)


def test_an_override_in_what_is_no_section(tmp_path, capsys):
  path = tmp_path / 'bad.py'
  path.write_text('def get_config():\n  return {"model": 3}\n')
  override = '--config.model.dropout=0'
  assert cli.main(['config', '--config', str(path), override]) == 2
  assert_error(capsys, 'model is 3 in the file, not a section')


@pytest.mark.parametrize(
  'override, words',
  [
    ('--config.nonsense=1', ['nonsense', 'batch_size']),
    ('--config.model.nonsense=1', ['model.nonsense']),
    ('--config.batchsize=4', ['batchsize', 'did you mean batch_size?']),
    ('--config.model.num_layer=4', ['did you mean num_layers?']),
    ('--config.batch_size=many', ['batch_size', 'many', 'integer']),
    ('--config.batch_size=0', ['batch_size', '0', 'at least 1']),
    (
      '--config.optimizer.learning_rate=1e999',
      ['config.optimizer.learning_rate: inf, must be finite'],
    ),
  ],
)
def test_bad_override(experiment, override, words, capsys):
  assert cli.main(['config', '--config', experiment, override]) == 2
  assert_error(capsys, *words)


@pytest.mark.parametrize(
  'error, status, text',
  [
    (ValueError('in two\nlines'), 2, 'in two lines'),
    (
      FileNotFoundError(errno.ENOENT, 'No such file', 'q.jsonl'),
      2,
      'q.jsonl: No such file',
    ),
    (IsADirectoryError(errno.EISDIR, 'Is a directory', 'd'), 2, 'd: Is a'),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'c'), 1, 'c: No space'),
    # What TensorStore and Orbax raise then.
    (ValueError('RESOURCE_EXHAUSTED: No space left on device'), 1, 'No space'),
    (RuntimeError('broke'), 1, 'RuntimeError: broke'),
    (AssertionError(), 1, 'AssertionError'),
  ],
)
def test_errors_of_a_verb(calls, error, status, text, capsys):
  calls('realm_jax.evaluate.ask', 'search', error)
  search = ['search', '--workdir', 'w', '--query', 'q']
  assert cli.main(search) == status
  assert_error(capsys, text)
  assert cli.main([*search, '--debug']) == status
  captured = capsys.readouterr().err
  assert captured.startswith('Traceback') and type(error).__name__ in captured


def test_full_disk_behind_standard_output(experiment):
  if not os.path.exists('/dev/full'):
    pytest.skip('no /dev/full on this system')
  with open('/dev/full', 'w') as full:
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'realm_jax'),
        *('config', '--config', experiment, '--print'),
      ],
      stdout=full,
      stderr=subprocess.PIPE,
      text=True,
      timeout=600,
    )
  assert done.returncode == 1
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1


@pytest.mark.parametrize('stage', ['mlm', 'ict', 'pretrain', 'finetune'])
def test_a_stage_returns_the_status_of_its_run(calls, experiment, stage):
  made = calls('realm_jax.train.run', 'train', 75)
  status = cli.main(
    [
      *(stage, '--config', experiment, '--workdir=w', '--config.seed', '3'),
      '--profile=10,20',
    ]
  )
  assert status == 75
  [((name, config, workdir, profile), _)] = made
  assert (name, config.seed, workdir) == (stage, 3, 'w')
  assert profile == (10, 20)


NEWEST = {'step': None, 'index_version': None, 'allow_stale_index': False}

# module, function, command line, arguments of the call
CALLS = [
  (
    'corpus.prepare',
    'prepare',
    'prepare --input a b --input=c --vocab v --output o --workers 2',
    {
      **{'inputs': ['a', 'b', 'c'], 'format': 'jsonl', 'output': 'o'},
      **{'vocab': 'v', 'train_vocab': None, 'block_length': 288, 'workers': 2},
    },
  ),
  (
    'corpus.change',
    'add',
    'corpus add --corpus c --input a --format tfds',
    {'path': 'c', 'inputs': ['a'], 'format': 'tfds'},
  ),
  (
    'corpus.change',
    'remove',
    'corpus remove --corpus c --document 1 2',
    {'path': 'c', 'document_ids': ['1', '2']},
  ),
  (
    'index.refresh',
    'refresh',
    'refresh --workdir w',
    {'path': 'w', 'follow': False},
  ),
  (
    'index.refresh',
    'refresh',
    'refresh --workdir w --once',
    {'path': 'w', 'follow': False},
  ),
  (
    'index.refresh',
    'refresh',
    'refresh --workdir w --follow',
    {'path': 'w', 'follow': True},
  ),
  (
    'jobs.index',
    'list_index',
    'index --workdir w --report',
    {'workdir': 'w', 'report': True},
  ),
  (
    'evaluate.evaluate',
    'evaluate',
    'evaluate --workdir w --questions q --output o --step 7',
    {'workdir': 'w', 'questions': 'q', 'output': 'o', **NEWEST, 'step': 7},
  ),
  (
    'evaluate.ask',
    'search',
    'search --workdir w --query q --k 3 --index_version 2',
    {'workdir': 'w', 'query': 'q', 'k': 3, **NEWEST, 'index_version': 2},
  ),
  (
    'evaluate.ask',
    'ask',
    'ask --workdir w --allow_stale_index who?',
    {'workdir': 'w', 'question': 'who?', **NEWEST, 'allow_stale_index': True},
  ),
  (
    'jobs.embed',
    'embed',
    'embed --workdir w --input f --output v.npy --as query',
    {'workdir': 'w', 'input': 'f', 'output': 'v.npy', 'side': 'query'},
  ),
  (
    'jobs.quickstart',
    'quickstart',
    'quickstart --workdir w --seed 2 --size small',
    {'workdir': 'w', 'seed': 2, 'size': 'small'},
  ),
]


@pytest.mark.parametrize('module, function, line, arguments', CALLS)
def test_a_verb_makes_one_call(
  calls, module, function, line, arguments, capsys
):
  result = 0 if function in ('refresh', 'quickstart') else {'é': [1]}
  if module.startswith('corpus.'):
    result['generations'] = ['not printed']
  made = calls(f'realm_jax.{module}', function, result)
  assert cli.main(line.split()) == 0
  assert made == [((), arguments)]
  printed = capsys.readouterr().out
  if function in ('refresh', 'embed', 'quickstart'):
    assert printed == ''
  else:
    assert json.loads(printed) == {'é': [1]}


@pytest.mark.parametrize('module, function, line, arguments', CALLS)
def test_what_is_called_takes_the_arguments(module, function, line, arguments):
  target = importlib.import_module(f'realm_jax.{module}')
  inspect.signature(getattr(target, function)).bind(**arguments)


def test_index_lists_the_committed_versions(tmp_path, capsys):
  from realm_jax import config as config_lib
  from realm_jax.workdir import run, versions

  workdir = run.Workdir.create(tmp_path / 'w', 'pretrain', config_lib.Config())
  listing = ['index', '--workdir', str(tmp_path / 'w')]
  assert cli.main(listing) == 0
  assert json.loads(capsys.readouterr().out) == []
  manifest = versions.Manifest(
    version=1,
    checkpoint_step=10,
    embedder_digest='e',
    corpus_fingerprint='c',
    tokenizer_digest='t',
    kind='exact',
    rows=5,
    dim=4,
    dtype='bfloat16',
    chunk_rows=5,
    checksums={'rows': [1]},
    recall={'8': 1.0},
    build_seconds=2.0,
  )
  versions.directory(workdir.index, 1).mkdir(parents=True)
  versions.directory(workdir.index, 2).mkdir()  # not committed
  versions.write_manifest(workdir.index, manifest)
  assert cli.main(listing) == 0
  [short] = json.loads(capsys.readouterr().out)
  assert (short['version'], short['bytes']) == (1, 40)
  assert short['recall'] == {'8': 1.0} and 'checksums' not in short
  assert cli.main([*listing, '--report']) == 0
  [whole] = json.loads(capsys.readouterr().out)
  assert whole['corpus_fingerprint'] == 'c' and whole['bytes'] == 40
  # One that is damaged does not hide the others.
  again = versions.directory(workdir.index, 3)
  again.mkdir()
  (again / 'manifest.json').write_text('{')
  assert cli.main(listing) == 0
  printed = capsys.readouterr()
  assert [x['version'] for x in json.loads(printed.out)] == [1]
  assert 'index version 3 passed over' in printed.err
