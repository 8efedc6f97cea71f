import json

import pytest

from realm_jax import config as config_lib
from realm_jax.workdir import run

CONFIG = config_lib.Config(corpus='/c', num_steps=10)


def test_create_then_open_gives_the_same(tmp_path):
  made = run.Workdir.create(tmp_path / 'a' / 'w', 'ict', CONFIG)
  opened = run.Workdir.open(made.path)
  assert (opened.stage, opened.config) == ('ict', CONFIG)
  values = json.loads((made.path / 'config.json').read_text())
  assert values['format_version'] == 1


def test_a_half_written_file_goes(tmp_path):
  run.Workdir.create(tmp_path, 'ict', CONFIG)
  (tmp_path / '.swaps.jsonl.tmp').write_text('{"st')
  run.Workdir.create(tmp_path, 'ict', CONFIG)
  assert {path.name for path in tmp_path.iterdir()} == {
    'config.json',
    '.trainer.lock',
  }


def test_resume_takes_new_values_of_what_may_change(tmp_path):
  run.Workdir.create(tmp_path, 'ict', CONFIG)
  longer = config_lib.replace(
    CONFIG, num_steps=20, log_every=1, refresh={'every': 7}
  )
  run.Workdir.create(tmp_path, 'ict', longer)
  assert run.Workdir.open(tmp_path).config == longer


def test_a_key_that_an_older_run_did_not_use_is_dropped(tmp_path):
  file = run.Workdir.create(tmp_path, 'ict', CONFIG).path / 'config.json'
  values = json.loads(file.read_text())
  values['refresh']['write_back_next'] = 0
  file.write_text(json.dumps(values))
  assert run.Workdir.open(tmp_path).config == CONFIG
  values['refresh']['write_back_next'] = 3
  file.write_text(json.dumps(values))
  with pytest.raises(ValueError, match=r'write_back_next: no such key'):
    run.Workdir.open(tmp_path)


@pytest.mark.parametrize('was, now', [(False, 'none'), (True, 'full')])
def test_remat_of_an_older_run_is_read(tmp_path, was, now):
  file = run.Workdir.create(tmp_path, 'ict', CONFIG).path / 'config.json'
  values = json.loads(file.read_text())
  values['model']['remat'] = was
  file.write_text(json.dumps(values))
  expected = config_lib.replace(CONFIG, model={'remat': now})
  assert run.Workdir.open(tmp_path).config == expected
  run.Workdir.create(tmp_path, 'ict', expected)  # it goes on


def test_paths_of_a_run_are_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = config_lib.Config(
    corpus='runs/z',
    text_corpus='gs://bucket/x',
    questions='tfds:natural_questions_open:train',
    dev_questions='/q.jsonl',
    init_from='../w:300',
  )
  absolute = run.absolute_paths(config)
  assert absolute.corpus == str(tmp_path / 'runs/z')
  assert absolute.init_from == str(tmp_path.parent / 'w:300')
  unchanged = ('text_corpus', 'questions', 'dev_questions', 'index_from')
  for name in unchanged:
    assert getattr(absolute, name) == getattr(config, name)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'corpus': '/d'}, r"config\.corpus is '/d', but .* '/c'"),
    ({'seed': 3}, r'config\.seed is 3, but .* 0'),
    ({'batch_size': 8}, r'config\.batch_size is 8, but .* 32'),
    ({'model': {'num_layers': 2}}, r'model\.num_layers is 2, but .* 12'),
  ],
)
def test_resume_refuses_another_model_or_corpus(tmp_path, changes, message):
  run.Workdir.create(tmp_path, 'ict', CONFIG)
  with pytest.raises(ValueError, match=message):
    run.Workdir.create(tmp_path, 'ict', config_lib.replace(CONFIG, **changes))
  assert run.Workdir.open(tmp_path).config == CONFIG


def test_another_stage_is_refused(tmp_path):
  run.Workdir.create(tmp_path, 'ict', CONFIG)
  with pytest.raises(ValueError, match='the stage ict, not pretrain'):
    run.Workdir.create(tmp_path, 'pretrain', CONFIG)


def test_a_second_trainer_changes_nothing(tmp_path):
  first = run.Workdir.create(tmp_path, 'ict', CONFIG)
  changed = config_lib.replace(CONFIG, num_steps=20)
  with run.Workdir.held(tmp_path, 'ict', CONFIG):
    with pytest.raises(ValueError, match='another trainer is running'):
      run.Workdir.create(tmp_path, 'ict', changed)
    with pytest.raises(ValueError, match='another trainer'):
      first.lock('trainer').__enter__()
  assert run.Workdir.open(tmp_path).config == CONFIG


def test_what_is_no_workdir_is_refused(tmp_path):
  with pytest.raises(ValueError, match='not a workdir'):
    run.Workdir.open(tmp_path)
  (tmp_path / 'config.json').write_text('{"format_version": 99}')
  with pytest.raises(ValueError, match='format_version 99, this program'):
    run.Workdir.open(tmp_path)
  (tmp_path / 'config.json').write_text('{"format_version": 1}')
  with pytest.raises(ValueError, match='stage None'):
    run.Workdir.open(tmp_path)
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='is a file'):
    run.Workdir.create(tmp_path / 'file', 'ict', CONFIG)
