"""Models of the reference in, the same models out.

The fixtures and what the reference computes with them: see
tests/reference/torch_reference.py.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from realm_jax import cli
from realm_jax.workdir import files

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures' / 'reference'
KINDS = ('bert', 'embedder', 'scorer', 'encoder', 'reader', 'open_qa')


def tensors(directory):
  found = {}
  for file in directory.glob('*.safetensors'):
    found |= safetensors.numpy.load_file(file)
  return found


@pytest.fixture
def realm(capsys):
  """realm(*arguments, status=0): what is printed, or the error's line."""

  def run(*arguments, status=0):
    capsys.readouterr()  # what fixtures printed
    assert cli.main(list(map(str, arguments))) == status
    out, err = capsys.readouterr()
    if not status:
      return json.loads(out)
    *_, line = err.strip().split('\n')
    assert line.startswith('error: ')
    return line

  return run


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  """imported(kind): the workdir of a fixture, made once."""
  made = {}

  def make(kind):
    if kind not in made:
      made[kind] = tmp_path_factory.mktemp('imported') / kind
      flags = ['--from', str(FIXTURES / kind), '--output', str(made[kind])]
      assert cli.main(['import', *flags]) == 0
    return made[kind]

  return make


@pytest.mark.parametrize('kind', KINDS)
def test_outputs_are_those_of_the_reference(tmp_path, realm, kind):
  source = FIXTURES / kind
  found = realm(
    *('import', '--from', source, '--output', tmp_path / 'w'),
    *('--verify', source / 'expected.npz'),
  )
  assert found['kind'] == kind
  assert found['parameters'] == files.read_json(source / 'parameters.json')
  outputs = {'encoder': 'loss', 'reader': 'start_pos', 'open_qa': 'reader_loss'}
  assert (
    outputs.get(kind, next(iter(found['max_abs_diff'])))
    in (found['max_abs_diff'])
  )
  assert max(found['max_abs_diff'].values()) <= 1e-5


def test_the_query_embedder_of_open_qa(tmp_path, realm):
  source = FIXTURES / 'open_qa'
  found = realm(
    *('import', '--from', source, '--output', tmp_path / 'w'),
    *('--verify', source / 'query.npz'),
  )
  assert found['max_abs_diff'].keys() == {'projected_score'}
  assert found['max_abs_diff']['projected_score'] <= 1e-5


@pytest.mark.parametrize(
  ('kind', 'name', 'least'),
  [
    ('embedder', 'projected_score', 0.9),
    ('encoder', 'loss', 0.9),
    ('reader', 'candidate', 0.9),
    ('reader', 'reader_correct', 1),
    ('scorer', 'relevance_score', 0.9),
  ],
)
def test_a_difference_is_found(tmp_path, capsys, kind, name, least):
  with np.load(FIXTURES / kind / 'expected.npz') as file:
    expected = dict(file)
  changed = expected[name].copy()
  changed.flat[0] = (
    not changed.flat[0] if changed.dtype == bool else (changed.flat[0] + 1)
  )
  np.savez(tmp_path / 'e.npz', **{**expected, name: changed})
  flags = ['--from', str(FIXTURES / kind), '--output', str(tmp_path / 'w')]
  flags += ['--verify', str(tmp_path / 'e.npz')]
  assert cli.main(['import', *flags]) == 1
  out, err = capsys.readouterr()
  differences = json.loads(out)['max_abs_diff']
  assert differences.pop(name) >= least
  assert max(differences.values(), default=0) <= 1e-5
  assert 'error: --verify' in err and 'Traceback' not in err


def test_a_nan_is_a_difference(tmp_path, capsys):
  with np.load(FIXTURES / 'embedder' / 'expected.npz') as file:
    expected = dict(file)
  expected['projected_score'].flat[0] = np.nan
  np.savez(tmp_path / 'e.npz', **expected)
  flags = [
    '--from',
    str(FIXTURES / 'embedder'),
    '--output',
    str(tmp_path / 'w'),
  ]
  assert cli.main(['import', *flags, '--verify', str(tmp_path / 'e.npz')]) == 1
  told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
  assert told['max_abs_diff']['projected_score'] is None


def test_documents_of_two_embedders_have_no_temperature(tmp_path, realm):
  flags = ('--from', FIXTURES / 'scorer', '--output', tmp_path / 'w')
  realm('import', *flags)
  config = files.read_json(tmp_path / 'w' / 'config.json')
  config['score_temperature'] = 4.0
  files.write_json(tmp_path / 'w' / 'config.json', config)
  to = tmp_path / 'out'
  realm('export', '--workdir', tmp_path / 'w', '--to', to, '--as', 'embedder')
  both = tensors(FIXTURES / 'scorer')
  for key, array in tensors(to).items():
    np.testing.assert_array_equal(array, both[f'embedder.{key}'])


@pytest.mark.parametrize('kind', KINDS)
def test_the_way_back_is_exact(tmp_path, realm, imported, kind):
  to = tmp_path / 'out'
  written = realm('export', '--workdir', imported(kind), '--to', to)
  before, after = tensors(FIXTURES / kind), tensors(to)
  assert written == {kind: len(before)}
  assert before.keys() == after.keys()
  for key, array in before.items():
    assert array.tobytes() == after[key].tobytes(), key
    assert array.shape == after[key].shape
  assert files.read_json(to / 'config.json') == files.read_json(
    FIXTURES / kind / 'config.json'
  )
  # transformers refuses a file that does not say so.
  with safetensors.safe_open(to / 'model.safetensors', 'numpy') as file:
    assert file.metadata() == {'format': 'pt'}


def test_open_qa_answers_from_its_records(realm, imported, tmp_path):
  workdir = imported('open_qa')
  (version,) = realm('index', '--workdir', workdir)
  assert (version['version'], version['rows'], version['dim']) == (1, 37, 10)
  found = realm('search', '--workdir', workdir, '--query', 'w3 w4', '--k', 3)
  with np.load(FIXTURES / 'open_qa' / 'query.npz') as file:
    assert file['projected_score'].shape[1] == 10
  rows = tensors(FIXTURES / 'open_qa')['block_emb']
  texts = files.read_lines(small_texts(tmp_path, ['w3 w4']))
  assert texts == [{'text': 'w3 w4'}]
  embed = ('embed', '--workdir', str(workdir), '--as', 'query')
  embed += ('--input', str(tmp_path / 't.jsonl'))
  embed += ('--output', str(tmp_path / 'q.npy'))
  assert cli.main(list(embed)) == 0
  scores = np.load(tmp_path / 'q.npy')[0] @ rows.T
  best = np.argsort(-scores)[:3]
  assert [place['block'] for place in found] == best.tolist()
  for place, row in zip(found, best, strict=True):
    assert place['text'] == f'w{row} w{row + 1} w3. W{row % 5} w9.'
    np.testing.assert_allclose(place['score'], scores[row], rtol=1e-5)
  given = realm('ask', '--workdir', workdir, 'w3 w4')
  assert given['answer']
  assert any(given['answer'] in place['text'] for place in given['evidence'])
  records = np.load(
    FIXTURES / 'open_qa' / 'block_records.npy', allow_pickle=True
  )
  realm('export', '--workdir', workdir, '--to', tmp_path / 'out')
  again = np.load(tmp_path / 'out' / 'block_records.npy', allow_pickle=True)
  assert again.tolist() == records.tolist()


def small_texts(folder, texts):
  path = folder / 't.jsonl'
  path.write_text(''.join(json.dumps({'text': t}) + '\n' for t in texts))
  return path


def test_a_shared_scorer_names_its_tensors_twice_or_once(
  tmp_path, realm, source
):
  path = source('embedder')
  one = tensors(path)
  safetensors.numpy.save_file(
    {
      f'{before}{key}': array
      for before in ('embedder.', 'query_embedder.')
      for key, array in one.items()
    },
    path / 'model.safetensors',
  )
  config = files.read_json(path / 'config.json')
  config['architectures'] = ['RealmScorer']
  files.write_json(path / 'config.json', config)
  found = realm('import', '--from', path, '--output', tmp_path / 'w')
  assert found['kind'] == 'scorer'
  assert found['parameters'] == sum(array.size for array in one.values())
  assert files.read_json(tmp_path / 'w' / 'config.json')['model'][
    'share_embedders'
  ]
  realm('export', '--workdir', tmp_path / 'w', '--to', tmp_path / 'out')
  assert set(tensors(tmp_path / 'out')) == {f'embedder.{key}' for key in one}


@pytest.fixture
def source(tmp_path):
  """source(kind): a copy of a fixture that a test may break."""

  def copy(kind):
    return pathlib.Path(shutil.copytree(FIXTURES / kind, tmp_path / kind))

  return copy


def test_without_text_an_index_is_searched_only(tmp_path, source, capsys):
  path = source('open_qa')
  (path / 'block_records.npy').unlink()
  workdir = str(tmp_path / 'w')
  assert cli.main(['import', '--from', str(path), '--output', workdir]) == 0
  assert 'nothing can be answered from it' in capsys.readouterr().err
  search = ['search', '--workdir', workdir, '--query', 'w3 w4']
  assert cli.main(search) == 0
  found = json.loads(capsys.readouterr().out)
  assert len(found) == 5
  assert found[0]['text'] is found[0]['document'] is None
  for asked in (
    ['ask', '--workdir', workdir, 'w3'],
    ['evaluate', '--workdir', workdir, '--questions', str(questions(tmp_path)),
     '--output', str(tmp_path / 'out')],
  ):  # fmt: skip
    assert cli.main(asked) == 2
    assert 'its index came without text' in capsys.readouterr().err


def questions(folder):
  path = folder / 'q.jsonl'
  path.write_text('{"question": "w3 w4?", "answers": ["w9"]}\n' * 3)
  return path


def test_a_corpus_store_gives_the_text(tmp_path, realm, source):
  path = source('open_qa')
  records = np.load(path / 'block_records.npy', allow_pickle=True)
  (path / 'block_records.npy').unlink()
  documents = tmp_path / 'z.jsonl'
  documents.write_text(
    ''.join(
      json.dumps({'title': 'w1', 'text': record.decode()}) + '\n'
      for record in records
    )
  )
  prepare = ('prepare', '--input', documents, '--vocab', path / 'vocab.txt')
  realm(*prepare, '--output', tmp_path / 'z', '--block-length', 40)
  flags = ('import', '--from', path, '--corpus', tmp_path / 'z')
  realm(*flags, '--output', tmp_path / 'w')
  found = realm('search', '--workdir', tmp_path / 'w', '--query', 'w3 w4')
  assert found[0]['title'] == 'w1' and found[0]['text'].endswith('w9.')
  scores = realm(
    *('evaluate', '--workdir', tmp_path / 'w'),
    *('--questions', questions(tmp_path), '--output', tmp_path / 'out'),
  )
  assert scores['recall@1']['value'] == 100
  # A stage goes on from it, with its index as it is.
  trained = tmp_path / 'finetune'
  experiment = tmp_path / 'x.py'
  hf = files.read_json(path / 'config.json')
  experiment.write_text(
    f'def get_config():\n  return {small_config(hf, tmp_path)!r}\n'
  )
  stage = ['finetune', '--config', str(experiment), '--workdir', str(trained)]
  assert cli.main(stage) == 0
  (swap,) = files.read_lines(trained / 'swaps.jsonl')
  assert swap['index'] == str(tmp_path / 'w' / 'index')
  assert realm('ask', '--workdir', trained, 'w3 w4')['evidence']
  # What was trained goes back, with the heads that came along.
  realm('export', '--workdir', trained, '--to', tmp_path / 'out_trained')
  before, after = tensors(path), tensors(tmp_path / 'out_trained')
  assert before.keys() == after.keys()
  same = {k for k in before if np.array_equal(before[k], after[k])}
  assert 'block_emb' in same
  assert 'reader.cls.predictions.decoder.weight' in same
  assert 'embedder.cls.predictions.transform.dense.weight' in same
  assert 'reader.qa_outputs.dense_output.weight' not in same
  # Rows of a document that was removed stay behind.
  realm('corpus', 'remove', '--corpus', tmp_path / 'z', '--document', '1')
  realm('export', '--workdir', trained, '--to', tmp_path / 'out_36')
  left = tensors(tmp_path / 'out_36')['block_emb']
  np.testing.assert_array_equal(left, np.delete(before['block_emb'], 1, 0))
  # Too few blocks for the rows.
  documents.write_text('{"title": "w1", "text": "w2 w3."}\n')
  realm(*prepare, '--output', tmp_path / 'few', '--block-length', 40)
  said = realm(
    *('import', '--from', path, '--corpus', tmp_path / 'few'),
    *('--output', tmp_path / 'w2'),
    status=2,
  )
  assert 'has 1 blocks, but block_emb has 37 rows' in said
  assert not (tmp_path / 'w2').exists()


def small_config(hf, folder):
  return {
    'corpus': str(folder / 'z'),
    'questions': str(questions(folder)),
    'init_from': str(folder / 'w'),
    'num_steps': 2,
    'batch_size': 8,
    'query_length': 9,
    'reader_length': 22,
    'retriever_beam': 4,
    'reader_beam': 2,
    'index': {'rows_dtype': 'float32'},
    'optimizer': {'learning_rate': 1e-2},
    'model': {
      'vocab_size': hf['vocab_size'],
      'hidden_size': hf['hidden_size'],
      'num_layers': hf['num_hidden_layers'],
      'num_heads': hf['num_attention_heads'],
      'mlp_size': hf['intermediate_size'],
      'max_positions': hf['max_position_embeddings'],
      'retrieval_size': hf['retriever_proj_size'],
      'span_hidden_size': hf['span_hidden_size'],
      'max_span_width': hf['max_span_width'],
      'initializer_range': hf['initializer_range'],
      'share_embedders': False,
    },
  }


def broken(path, kind):
  """Breaks a fixture in one way; gives what the error must say."""
  config = files.read_json(path / 'config.json')
  weights = path / 'model.safetensors'
  held = tensors(path) if kind not in ('no_config', 'truncated') else {}
  if kind == 'no_config':
    (path / 'config.json').unlink()
    return ['config.json: no such file']
  if kind == 'truncated':
    weights.write_bytes(weights.read_bytes()[:1000])
    return ['model.safetensors: not safetensors']
  if kind in ('model_type', 'architectures', 'hidden_size', 'missing_key'):
    config |= {
      'model_type': {'model_type': 'gpt2'},
      'architectures': {'architectures': ['RealmReader']},
      'hidden_size': {'hidden_size': 32, 'num_attention_heads': 4},
      'missing_key': {},
    }[kind]
    if kind == 'missing_key':
      del config['retriever_proj_size']
    files.write_json(path / 'config.json', config)
    return {
      'model_type': ["model_type 'gpt2'", 'bert or realm'],
      'architectures': ['RealmReader', 'RealmForOpenQA'],
      'hidden_size': ['misshapen', 'embedder.cls.dense.weight [10, 24]'],
      'missing_key': ['retriever_proj_size is missing'],
    }[kind]
  if kind == 'vocab':
    (path / 'vocab.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n')
    return ['vocab.txt: has 6 wordpieces', 'vocab_size is 61']
  if kind == 'records':
    np.save(path / 'block_records.npy', np.array([b'w1', b'w2']))
    return ['has 2 texts, but block_emb has 37 rows']
  if kind == 'pickle':
    np.save(path / 'block_records.npy', np.array([pathlib.Path('x')] * 37))
    return ['block_records.npy: not an array of texts', 'pathlib']
  key = 'embedder.cls.dense.weight'
  if kind == 'integers':
    held[key] = held[key].astype(np.int8)
  elif kind == 'no_rows':
    del held['block_emb']
  elif kind == 'dead_missing':
    key = 'reader.realm.pooler.dense.bias'
    del held[key]
  elif kind == 'unknown':
    key = 'reader.adapter.weight'
    held[key] = np.zeros(3, np.float32)
  safetensors.numpy.save_file(held, weights)
  return {
    'integers': [f'{key}: int8', 'float32, float16, bfloat16'],
    'no_rows': ['block_emb'],
    'dead_missing': [f'missing: {key}'],
    'unknown': [f'unknown: {key}'],
  }[kind]


@pytest.mark.parametrize(
  'kind',
  [
    *('no_config', 'truncated', 'model_type', 'architectures', 'hidden_size'),
    *('missing_key', 'vocab', 'records', 'pickle', 'integers', 'no_rows'),
    *('dead_missing', 'unknown'),
  ],
)
def test_bad_input_writes_nothing(tmp_path, realm, source, kind):
  path = source('open_qa')
  words = broken(path, kind)
  said = realm(
    *('import', '--from', path, '--output', tmp_path / 'w'), status=2
  )
  for word in words:
    assert word in said
  assert not (tmp_path / 'w').exists()


def test_bad_verification_and_output(tmp_path, realm, source):
  path = source('reader')
  flags = ('import', '--from', path, '--output', tmp_path / 'w')

  def said(**changes):
    with np.load(path / 'expected.npz') as file:
      values = {**file, **changes}
    values = {name: x for name, x in values.items() if x is not None}
    np.savez(tmp_path / 'e.npz', **values)
    return realm(*flags, '--verify', tmp_path / 'e.npz', status=2)

  assert "no input 'relevance_score'" in said(relevance_score=None)
  assert 'hidden: not an output of this reader' in said(hidden=np.zeros(2))
  assert 'loss is [2], the model gives []' in said(loss=np.zeros(2))
  gaps = np.array([[True, False] * 11] * 2)
  assert 'must be without gaps' in said(block_mask=gaps)
  (tmp_path / 'no.npz').write_text('no')
  np.save(tmp_path / 'no.npy', np.zeros(3))
  whole = (path / 'expected.npz').read_bytes()
  (tmp_path / 'half.npz').write_bytes(whole[: len(whole) // 2])
  for name in ('no.npz', 'no.npy', 'half.npz'):
    assert f'{name}: not an .npz file' in realm(
      *flags, '--verify', tmp_path / name, status=2
    )
  assert not (tmp_path / 'w').exists()
  realm(*flags)
  assert 'holds files of something else' in realm(*flags, status=2)
  export = ('export', '--workdir', tmp_path / 'w', '--to')
  said_ = realm(*export, path, status=2)
  assert 'holds files of something else' in said_
  said_ = realm(*export, tmp_path / 'x', '--as', 'encoder', status=2)
  assert 'has no encoder, which encoder needs; has reader' in said_
  assert not (tmp_path / 'x').exists()
