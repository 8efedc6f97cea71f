"""Reading documents: what is read, and how wrong input is named."""

import bz2
import gzip
import json
import os
import subprocess
import sys
import textwrap

import pytest
import zstandard

from realm_jax.corpus import sources
from realm_jax.corpus.ids import SeenIds

LINES = [
  {'id': 'a', 'title': 'Aé', 'text': 'One.'},
  {'title': 'B', 'text': 'Two.', 'more': [1]},
  {'id': 7, 'title': 'C', 'text': 'Three.'},
]
DATA = ''.join(json.dumps(line) + '\n' for line in LINES).encode()


def read(path, **options) -> list[tuple[str, str, str]]:
  return [
    (d.id, d.title, d.text)
    for d in sources.read_documents([str(path)], **options)
  ]


@pytest.mark.parametrize(
  'name, data',
  [
    ('a.jsonl', DATA),
    ('a.jsonl', DATA.rstrip() + b'\r\n\r\n  \n'),
    ('a.jsonl', DATA.rstrip()),
    ('a.jsonl.gz', gzip.compress(DATA)),
    # Files that were put together from several.
    ('a.jsonl.gz', gzip.compress(DATA[:50]) + gzip.compress(DATA[50:])),
    ('a.jsonl.zst', zstandard.compress(DATA)),
    (
      'a.jsonl.zst',
      zstandard.compress(DATA[:9]) + zstandard.compress(DATA[9:]),
    ),
    ('a.jsonl.bz2', bz2.compress(DATA[:50]) + bz2.compress(DATA[50:])),
  ],
)
def test_reads_all_kinds_of_files(tmp_path, name, data):
  (tmp_path / name).write_bytes(data)
  assert read(tmp_path / name) == [
    ('a', 'Aé', 'One.'),
    ('1', 'B', 'Two.'),
    ('7', 'C', 'Three.'),
  ]


def test_numbers_run_over_all_inputs(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"title": "A", "text": "One."}\n')
  path = str(tmp_path / 'a.jsonl')
  ids = [d.id for d in sources.read_documents([path, path], first_number=5)]
  assert ids == ['5', '6']


def test_reads_a_line_that_spans_many_chunks(tmp_path):
  text = 'word ' * 100_000
  line = json.dumps({'title': 'T', 'text': text}) + '\n'
  (tmp_path / 'a.jsonl.gz').write_bytes(gzip.compress(line.encode() * 2))
  assert [d[2] for d in read(tmp_path / 'a.jsonl.gz')] == [text, text]


@pytest.mark.parametrize(
  'name, data, message',
  [
    ('a.jsonl', b'', 'a.jsonl: empty file'),
    ('a.jsonl', b'\n\n', 'a.jsonl: empty file'),
    ('a.jsonl.gz', b'', 'a.jsonl.gz: empty file'),
    ('a.jsonl.gz', gzip.compress(DATA)[:-20], 'gz:[123]: .* truncated'),
    ('a.jsonl.zst', zstandard.compress(DATA)[:-4], 'zst:1: .* truncated'),
    ('a.jsonl.gz', DATA, 'a.jsonl.gz:1: .* damaged'),
    ('a.jsonl.zst', DATA, 'a.jsonl.zst:1: .* damaged'),
    ('a.jsonl.bz2', bz2.compress(DATA)[:-4], 'bz2:[1-4]: .* truncated'),
    ('a.jsonl.bz2', DATA, 'a.jsonl.bz2:1: .* damaged'),
    ('a.jsonl', DATA + b'{"title": ', 'a.jsonl:4: not JSON'),
    ('a.jsonl', b'9' * 5000, 'a.jsonl:1: not JSON'),
    ('a.jsonl', b'[' * 100_000, 'a.jsonl:1: not JSON'),
    ('a.jsonl', DATA + b'["a"]\n', 'a.jsonl:4: .* not a JSON object'),
    ('a.jsonl', DATA + b'{"title": "\xff"}\n', 'a.jsonl:4: not UTF-8 at byte'),
    ('a.jsonl', b'{"title": "\\ud83d", "text": "x"}', 'jsonl:1: .* surrogate'),
    ('a.jsonl', b'\n{"title": "x"}', "a.jsonl:2: has no field 'text'"),
    ('a.jsonl', b'{"text": "x"}', "a.jsonl:1: has no field 'title'"),
    ('a.jsonl', b'{"title": " ", "text": "x"}', 'a.jsonl:1: title: empty'),
    ('a.jsonl', b'{"title": "x", "text": "\\n"}', 'a.jsonl:1: text: empty'),
    ('a.jsonl', b'{"title": 3, "text": "x"}', 'a.jsonl:1: title: 3, must be'),
    ('a.jsonl', b'{"id": [], "title": "x", "text": "x"}', r'id: \[\], must be'),
    ('a.jsonl', b'{"id": "", "title": "x", "text": "x"}', 'id: empty'),
  ],
)
def test_wrong_input_is_named_in_one_line(tmp_path, name, data, message):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(ValueError, match=message) as caught:
    read(tmp_path / name)
  assert '\n' not in str(caught.value)


def test_wrong_places_are_named(tmp_path):
  with pytest.raises(ValueError, match=r'none\.jsonl: no such file'):
    read(tmp_path / 'none.jsonl')
  with pytest.raises(ValueError, match='is a directory'):
    read(tmp_path)
  with pytest.raises(ValueError, match='no input'):
    list(sources.read_documents([]))
  with pytest.raises(ValueError, match='--format csv: choose from jsonl'):
    read(tmp_path, format='csv')


def test_reads_what_wikiextractor_wrote(tmp_path):
  def write(name: str, *articles: tuple[str, str, str]) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    lines = (
      {'id': id, 'revid': '5', 'url': 'https://w', 'title': title, 'text': text}
      for id, title, text in articles
    )
    data = ''.join(json.dumps(line) + '\n' for line in lines).encode()
    path.write_bytes(bz2.compress(data) if name.endswith('.bz2') else data)

  write('AB/wiki_00', ('4', 'D', 'Last.'))
  write('AA/wiki_01.bz2', ('3', 'C', 'C\n\nIt &lt;is&gt;.\nC'))
  write('AA/wiki_00', ('1', 'A &amp; B', 'A & B, too.'), ('2', 'B', 'B\n'))
  (tmp_path / '.log').write_text('not an article')
  assert read(tmp_path, format='wikiextractor') == [
    ('1', 'A & B', 'A & B, too.'),
    ('3', 'C', '\nIt <is>.\nC'),
    ('4', 'D', 'Last.'),
  ]
  assert len(read(tmp_path / 'AA' / 'wiki_00', format='wikiextractor')) == 1
  (tmp_path / 'AC').mkdir()
  with pytest.raises(ValueError, match='AC: empty directory'):
    read(tmp_path, format='wikiextractor')
  (tmp_path / 'AC' / 'wiki_00').write_text('{"title": "x"}\n')
  with pytest.raises(ValueError, match="AC/wiki_00:1: has no field 'text'"):
    read(tmp_path, format='wikiextractor')


def test_surrogate_pairs_are_characters(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"title": "\\ud83d\\ude00", "text": "x"}')
  assert read(path)[0][1] == '\N{GRINNING FACE}'


def test_ids_that_repeat_are_named_with_both_places():
  documents = [
    sources.Document(name, 't', 'x', f'f:{line}')
    for line, name in enumerate(['a', 'b', 'é', 'b'], start=1)
  ]
  seen = SeenIds()
  with pytest.raises(ValueError, match="f:4: id: 'b' is that of f:2 already"):
    list(seen.check(documents))
  seen.close()


def test_title_of_a_wiki40b_article():
  record = {
    'text': '\n_START_ARTICLE_\nPaul B\n_START_SECTION_\nLife\n'
    '_START_PARAGRAPH_\nHe was.\n_START_PARAGRAPH_\nA king._NEWLINE_Old.',
    'wikidata_id': 'Q1',
  }
  changed = sources._with_title(record)
  assert changed['title'] == 'Paul B'
  assert changed['text'] == 'He was.\nA king.\nOld.'


BUILDER = """
  import tensorflow_datasets as tfds

  class TinyPassages(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      text = tfds.features.Text()
      return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict({'title': text, 'text': text})
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for n in range(3):
        yield n, {'title': f'Title {n}', 'text': f'Text \\u00e9 {n}.'}
"""

READER = """
  import json, sys
  from realm_jax.corpus import sources

  def read(name, format):
    try:
      return [d.text for d in sources.read_documents([name], format)]
    except ValueError as error:
      return str(error)

  print(json.dumps({
    'all': read('tfds:tiny_passages', 'jsonl'),
    'part': read('tiny_passages:train[1:]', 'tfds'),
    'split': read('tfds:tiny_passages:dev', 'jsonl'),
    'name': read('tfds:no_such_passages', 'jsonl'),
    'absent': read('tfds:natural_questions_open', 'jsonl'),
    'tensorflow': 'tensorflow' in sys.modules,
  }))
"""


def test_tfds_dataset_without_tensorflow(tmp_path):
  package = tmp_path / 'code' / 'tiny_passages'
  package.mkdir(parents=True)
  (package / '__init__.py').write_text(textwrap.dedent(BUILDER))
  environment = os.environ | {
    'TFDS_DATA_DIR': str(tmp_path / 'data'),
    'PYTHONPATH': f'{tmp_path / "code"}:{os.getcwd()}',
  }

  def run(code: str) -> str:
    return subprocess.run(
      [sys.executable, '-c', textwrap.dedent(code)],
      env=environment,
      cwd=tmp_path,
      check=True,
      stdout=subprocess.PIPE,
      text=True,
    ).stdout

  run(
    'import tiny_passages\n'
    "builder = tiny_passages.TinyPassages(file_format='array_record')\n"
    'builder.download_and_prepare()'
  )
  found = json.loads(run(READER).splitlines()[-1])
  texts = found['all']
  assert sorted(texts) == [f'Text é {n}.' for n in range(3)]
  assert found['part'] == texts[1:]
  assert "Unknown split 'dev'" in found['split']
  assert found['name'].startswith('tfds:no_such_passages: cannot be read')
  # It is not fetched.
  assert found['absent'].startswith('tfds:natural_questions_open: cannot be re')
  assert not found['tensorflow']
