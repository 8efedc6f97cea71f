"""The whole pipeline as a user runs it, on thirty documents.

What trains runs as processes of its own, on one device; what reads runs here,
on eight: checkpoints and indexes are of no number of devices.
"""

import dataclasses
import json
import pathlib
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from realm_jax import cli
from realm_jax.corpus.store import Corpus
from realm_jax.data import batches
from realm_jax.evaluate.restored import restore
from realm_jax.model import parts
from realm_jax.train import answer
from realm_jax.workdir import checkpoints, files, rows, versions

NUMBER = (int, float)


class World:
  """A folder with a corpus, questions, and a workdir for each stage."""

  def __init__(self, folder, cache):
    self.folder, self.cache = folder, cache
    self.corpus = str(folder / 'z')
    asked = [small_runs.question(n) for n in range(24)]
    self.train = small_runs.write_lines(folder / 'train.jsonl', asked[:16])
    self.test = small_runs.write_lines(folder / 'test.jsonl', asked[16:])
    self.manifest = self.said = None

  def path(self, name):
    return self.folder / name

  def start(self, *arguments, **options):
    return small_runs.start(arguments, self.cache, **options)

  def run(self, *arguments):
    process = self.start(
      *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert 'Traceback' not in err and 'WARNING' not in err
    self.said = err
    return out

  def stage(self, verb, **changes):
    experiment = small_runs.write_experiment(
      self.path(f'{verb}.py'), self.corpus, pooling='mean', **changes
    )
    workdir = str(self.path(verb))
    assert self.run(verb, '--config', experiment, '--workdir', workdir) == ''

  def lines(self, verb, name='metrics.jsonl'):
    return files.read_lines(self.path(verb) / name)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  cache = tmp_path_factory.mktemp('cache')
  world = World(tmp_path_factory.mktemp('world'), cache)
  source = small_runs.write_lines(
    world.path('z.jsonl'), map(small_runs.document, range(30))
  )
  world.manifest = json.loads(
    world.run(
      *('prepare', '--input', source, '--train-vocab', '200'),
      *('--block-length', '40', '--output', world.corpus),
    )
  )
  world.stage('ict', num_steps=30)
  refresher = world.start(
    'refresh', '--workdir', str(world.path('pretrain')), '--follow'
  )
  try:
    world.stage(
      'pretrain',
      init_from=str(world.path('ict')),
      dev_questions=world.test,
      num_steps=300,
      checkpoint_every=25,
      log_every=10,
      eval_every=300,
      refresh={'where': 'separate'},
    )
    assert refresher.wait(900) == 0
  finally:
    refresher.kill()
    refresher.wait()
  world.stage(
    'finetune',
    init_from=str(world.path('pretrain')),
    questions=world.train,
    dev_questions=world.test,
    num_steps=8,
    eval_every=4,
    checkpoint_every=3,
  )
  world.finetune_said = world.said
  with small_runs.compile_once(cache):
    yield world


@pytest.fixture
def realm(capsys):
  """realm(*arguments) -> the JSON it printed, or its error line."""

  def run(*arguments, status=0):
    assert cli.main([str(x) for x in arguments]) == status
    said = capsys.readouterr()
    if status:
      assert said.out == ''
      return said.err.splitlines()[-1]
    return json.loads(said.out) if said.out else None

  return run


def test_prepare_tells_what_it_made(world):
  names = 'num_documents num_blocks block_length num_sentences'
  names += ' num_salient_spans tokenizer_digest fingerprint'
  written = json.loads(pathlib.Path(world.corpus, 'manifest.json').read_text())
  for name in names.split():
    assert world.manifest[name] == written[name]
  assert world.manifest['num_documents'] == 30


def test_training_logs_its_steps(world):
  for verb, every, last in (
    ('ict', 1, 30),
    ('pretrain', 10, 300),
    ('finetune', 1, 8),
  ):
    lines = [line for line in world.lines(verb) if 'loss' in line]
    assert [x['step'] for x in lines] == [*range(every, last + 1, every)]
    names = ['loss', 'examples_per_second']
    if verb != 'ict':
      names += ['index_step', 'staleness_steps']
    if verb == 'pretrain':
      names += ['retrieval_utility', 'null_probability', 'retrieval_entropy']
      names += ['trivial_exclusion_rate']
    for line in lines[1:]:
      assert all(isinstance(line[name], NUMBER) for name in names)
    assert files.read_json(world.path(verb) / 'finished.json') == {'step': last}
  # Each sentence stands in its own block, which is often near.
  lines = [x for x in world.lines('pretrain') if 'loss' in x]
  rates = [line['trivial_exclusion_rate'] for line in lines]
  assert 0 < max(rates) <= 1 and min(rates) >= 0
  assert [x for x in world.lines('pretrain') if 'recall@1' in x]
  assert [x for x in world.lines('finetune') if 'exact_match' in x]


def test_the_trainer_swaps_in_what_the_refresher_makes(world):
  swaps = world.lines('pretrain', 'swaps.jsonl')
  assert len(swaps) >= 3
  assert swaps[0]['step'] == swaps[0]['checkpoint_step'] == 0
  for name in ('step', 'version', 'checkpoint_step'):
    values = [swap[name] for swap in swaps]
    assert values == sorted(set(values))
  for line in world.lines('pretrain'):
    used = [x for x in swaps if x['step'] < line['step']][-1]
    assert line['index_step'] == used['checkpoint_step']
    assert line['staleness_steps'] == line['step'] - line['index_step']
  index = world.path('pretrain') / 'index'
  newest = versions.read_manifest(index, versions.list_versions(index)[-1])
  assert newest.checkpoint_step == 300
  # A frozen index is used where it lies.
  assert versions.list_versions(world.path('finetune') / 'index') == []
  [swap] = world.lines('finetune', 'swaps.jsonl')
  assert swap['index'] == str(index)


def test_off_a_terminal_logged_steps_are_lines(world):
  lines = [
    line
    for line in world.finetune_said.split('\n')
    if line.startswith('finetune 8/8: ')
  ]
  step, scores = world.lines('finetune')[-2:]
  assert f'loss {step["loss"]:.4g}' in lines[0]
  assert f'exact_match {scores["exact_match"]:.4g}' in lines[1]


def test_a_checkpoint_has_the_score_of_its_own_step(world):
  saved = world.lines('finetune', 'saved.jsonl')
  scored = {line['step']: line['score'] is not None for line in saved}
  assert scored == {3: False, 4: True, 6: False, 8: True}


@pytest.mark.parametrize('verb', ['pretrain', 'finetune'])
def test_evaluate(world, realm, verb, tmp_path):
  metrics = realm(
    *('evaluate', '--workdir', world.path(verb)),
    *('--questions', world.test, '--output', tmp_path / 'out'),
  )
  assert metrics == json.loads((tmp_path / 'out/metrics.json').read_text())
  assert metrics['n'] == 8 and metrics['match'] == 'normalized'
  for name in ('recall@1', 'recall@5', 'recall@20', 'exact_match', 'f1'):
    if verb == 'pretrain' and name in ('exact_match', 'f1'):
      assert metrics[name] is None
      continue
    score = metrics[name]
    assert 0 <= score['low'] <= score['value'] <= score['high'] <= 100
  assert metrics['corpus_fingerprint'] == world.manifest['fingerprint']
  assert metrics['checkpoint_step'] in ([4, 8], [300])[verb == 'pretrain']
  assert metrics['index_step'] == 300
  page = (tmp_path / 'out/report.html').read_text()
  assert metrics['corpus_fingerprint'][:12] in page
  assert f'{metrics["recall@5"]["value"]:.1f}' in page
  assert page.count('<details') == 8 and page.count('<blockquote') == 40
  lines = files.read_lines(tmp_path / 'out' / 'predictions.jsonl')
  assert [line['id'] for line in lines] == [f'q{n}' for n in range(16, 24)]
  for line in lines:
    assert set(line) == {
      *('id', 'question', 'prediction', 'score', 'correct', 'evidence')
    }
    places = line['evidence']
    assert set(places[0]) == {
      *('block', 'document', 'title', 'score', 'probability')
    }
    assert len(places) == min(20, Corpus.open(world.corpus).num_blocks)
    null = 1 - sum(x['probability'] for x in places)
    # In pre-training the null document has its share.
    assert 1e-3 < null < 1 if verb == 'pretrain' else abs(null) < 1e-5
    assert sorted(places, key=lambda x: -x['score']) == places
    assert (line['prediction'] is None) == (verb == 'pretrain')


def test_evaluate_what_a_run_saved(world, capsys, tmp_path):
  arguments = ['evaluate', '--workdir', str(world.path('finetune')), '--follow']
  arguments += ['--questions', world.test, '--output', str(tmp_path)]
  assert cli.main([*arguments, '--step', '4']) == 2
  assert 'error: --step: not with --follow' in capsys.readouterr().err
  steps = checkpoints.steps(world.path('finetune'))
  assert cli.main(arguments) == 0
  lines = map(json.loads, capsys.readouterr().out.splitlines())
  assert [line['checkpoint_step'] for line in lines] == steps[::-1]
  places = {tmp_path: 8} | {tmp_path / str(step): step for step in steps}
  for directory, step in places.items():
    assert {path.name for path in directory.iterdir() if path.is_file()} == {
      *('metrics.json', 'predictions.jsonl', 'report.html')
    }
    metrics = files.read_json(directory / 'metrics.json')
    assert metrics['checkpoint_step'] == step
  assert cli.main(arguments) == 0  # nothing is left to do
  said = capsys.readouterr()
  assert said.out == '' and f'has steps {steps}' in said.err


def test_evaluate_as_a_process(world, tmp_path):
  printed = world.run(
    *('evaluate', '--workdir', str(world.path('finetune')), '--step', '8'),
    *('--questions', world.test, '--output', str(tmp_path / 'out')),
  )
  assert json.loads(printed)['checkpoint_step'] == 8


def test_search_and_ask(world, realm):
  finetune = world.path('finetune')
  found = realm('search', '--workdir', finetune, '--query', 'Lund', '--k', 4)
  assert len(found) == 4
  assert set(found[0]) == {
    *('block', 'document', 'title', 'text', 'score', 'probability')
  }
  corpus = Corpus.open(world.corpus)
  assert found[0]['text'] == corpus.text(found[0]['block'])
  said = realm('search', '--workdir', finetune, '--query', 'x', '--k', 99,
               status=2)  # fmt: skip
  assert said.startswith('error: --k 99')
  given = realm('ask', '--workdir', finetune, 'Where was Arno Arnosen born?')
  assert set(given) == {'answer', 'score', 'evidence'}
  assert len(given['evidence']) == 2
  assert any(given['answer'] in place['text'] for place in given['evidence'])
  said = realm('ask', '--workdir', world.path('ict'), 'Who?', status=2)
  assert 'no index version' in said and 'realm refresh' in said
  said = realm('ask', '--workdir', world.path('pretrain'), 'Who?', status=2)
  assert 'the stage pretrain has no reader' in said
  said = realm('evaluate', '--workdir', finetune, '--questions', world.test,
               '--output', world.test, status=2)  # fmt: skip
  assert 'is a file' in said and world.test in said
  said = realm('evaluate', '--workdir', finetune, '--questions', world.test,
               '--output', f'{world.test}/x', status=2)  # fmt: skip
  assert '--output' in said and 'Not a directory' in said


def test_the_score_of_the_null_document(world):
  restored = restore(str(world.path('pretrain')))
  tokenizer = restored.corpus.tokenizer
  config = dataclasses.replace(
    restored.config, score_temperature=2.0, null_bias=3.0
  )
  texts = ['Where is Lund?', 'Who?'] * 20
  found = answer.retrieve(
    *(restored.params, restored.index, texts, 3, config),
    *(restored.corpus, restored.mesh),
    null=True,
  )
  null_L = [tokenizer.cls_id, tokenizer.sep_id, tokenizer.sep_id]
  query_QL, _ = batches.encode_questions(texts, tokenizer, config.query_length)
  null_1E, query_QE = (
    parts.bind('embedder', config, restored.params['document_embedder'])(
      jnp.asarray(token_BL), sep_id=tokenizer.sep_id
    )
    for token_BL in ([null_L], query_QL)
  )
  want_Q = query_QE @ null_1E[0] / 2 + 3
  np.testing.assert_allclose(
    [shown.null_score for shown in found], want_Q, rtol=1e-4, atol=1e-4
  )


def test_index_of_another_embedder_is_refused(world, realm, tmp_path):
  workdir = tmp_path / 'w'
  shutil.copytree(world.path('pretrain'), workdir)
  index = workdir / 'index'
  first, *_, last = versions.list_versions(index)
  shutil.rmtree(versions.directory(index, last))
  search = ('search', '--workdir', workdir, '--query', 'Lund')
  said = realm(*search, status=2)
  records = files.read_lines(workdir / 'saved.jsonl')
  assert records[-1]['embedder_digest'][:12] in said
  assert '--allow_stale_index' in said
  assert len(realm(*search, '--allow_stale_index')) == 5
  metrics = realm(
    *('evaluate', '--workdir', workdir, '--questions', world.test),
    *('--output', tmp_path / 'out', '--allow_stale_index'),
    *('--index_version', first),
  )
  used = versions.read_manifest(index, first).checkpoint_step
  assert (metrics['checkpoint_step'], metrics['index_step']) == (300, used)
  # Versions that were not made of the steps they name.
  text = (workdir / 'saved.jsonl').read_text()
  foreign, last = text, records[-1]['embedder_digest']
  for record in records:
    if record['embedder_digest'] != last:
      foreign = foreign.replace(record['embedder_digest'], 'f' * 64)
  (workdir / 'saved.jsonl').write_text(foreign)
  said = realm(*search, '--allow_stale_index', status=2)
  assert last[:12] in said and 'give --allow_stale_index' not in said
  (workdir / 'saved.jsonl').write_text(text)
  realm('refresh', '--workdir', workdir, '--once')
  assert len(realm(*search)) == 5
  newest = realm('index', '--workdir', workdir)[-1]
  assert newest['checkpoint_step'] == 300
  assert newest['index'] == str(index)
  # Fine-tuning has made none: that of pre-training is its index.
  used = realm('index', '--workdir', world.path('finetune'))[-1]
  assert used['index'] == str(world.path('pretrain') / 'index')


def test_embed_gives_the_rows_of_the_index(world, realm, tmp_path):
  corpus = Corpus.open(world.corpus)
  numbers = range(corpus.num_blocks)
  texts = small_runs.write_lines(
    tmp_path / 'texts.jsonl',
    [{'title': corpus.title(n), 'text': corpus.text(n)} for n in numbers],
  )
  embed = ('embed', '--workdir', world.path('finetune'), '--input', texts)
  assert realm(*embed, '--output', tmp_path / 'd.npy') is None
  vectors = np.load(tmp_path / 'd.npy')
  assert (vectors.shape, vectors.dtype) == ((corpus.num_blocks, 8), np.float32)
  index = world.path('pretrain') / 'index'
  newest = versions.list_versions(index)[-1]
  stored = rows.read_rows(index, newest, 0, corpus.num_blocks)
  np.testing.assert_allclose(vectors, stored.astype(np.float32), rtol=0.01)
  plain = small_runs.write_lines(
    tmp_path / 'plain.jsonl', [{'text': 'Where is Lund? ' * 9}] * 3
  )
  query = ('embed', '--workdir', world.path('finetune'), '--as', 'query')
  realm(*query, '--input', plain, '--output', tmp_path / 'q.npy')
  assert np.load(tmp_path / 'q.npy').shape == (3, 8)
  said = realm(
    *query, '--input', texts, '--output', tmp_path / 'e.npy', status=2
  )
  assert f'{texts}:1: title' in said
  bad = small_runs.write_lines(tmp_path / 'bad.jsonl', [{'text': ''}])
  said = realm(*query, '--input', bad, '--output', tmp_path / 'e.npy', status=2)
  assert f'{bad}:1: text' in said
  for output, why in (
    (tmp_path, 'is a directory'),
    (tmp_path / 'none' / 'e.npy', 'directory does not exist'),
  ):
    said = realm(*query, '--input', plain, '--output', output, status=2)
    assert f'--output {output}' in said and why in said
  assert not (tmp_path / 'e.npy').exists()


def test_documents_come_and_go_without_training(world, realm, tmp_path):
  """The last test of this file: it changes the corpus."""
  finetune = world.path('finetune')

  def documents():
    found = realm(
      'search', '--workdir', finetune, '--query', 'Zarathustra', '--k', 30
    )
    return {place['document'] for place in found}

  old = {f'd{n}' for n in range(30)}
  new = small_runs.document(3) | {'id': 'new', 'title': 'Zarathustra'}
  more = small_runs.write_lines(tmp_path / 'more.jsonl', [new])
  realm('corpus', 'add', '--corpus', world.corpus, '--input', more)
  assert documents() == old  # until the index has it
  realm('refresh', '--workdir', finetune, '--once')
  found = realm(
    'search', '--workdir', finetune, '--query', 'Zarathustra', '--k', 31
  )
  assert {place['document'] for place in found} == old | {'new'}
  ids = [x for n in range(30) for x in ('--document', f'd{n}')]
  realm('corpus', 'remove', '--corpus', world.corpus, *ids)
  assert documents() == {'new'}  # what is removed is gone at once
  realm('refresh', '--workdir', finetune, '--once')
  assert documents() == {'new'}
  given = realm('ask', '--workdir', finetune, 'Where was Arno born?')
  assert [x['document'] for x in given['evidence']] == ['new']
  assert given['answer'] in new['text']
  metrics = realm(
    *('evaluate', '--workdir', finetune, '--questions', world.test),
    *('--output', tmp_path / 'out'),
  )
  assert metrics['corpus_fingerprint'] != world.manifest['fingerprint']
  for line in files.read_lines(tmp_path / 'out' / 'predictions.jsonl'):
    assert {x['document'] for x in line['evidence']} == {'new'}
