"""The toy world: consistent, hard where it should be, easy where it must."""

import collections
import json
import pathlib
import re

import pytest

from realm_jax.corpus import toy, toy_facts, toy_text

WORLDS = [(size, seed) for size in toy_facts.SIZES for seed in (0, 1)]


def _read(path):
  with open(path, encoding='utf-8') as file:
    return [json.loads(line) for line in file]


@pytest.fixture(scope='module', params=WORLDS, ids=str)
def world(request, tmp_path_factory):
  size, seed = request.param
  report = toy.write_world(tmp_path_factory.mktemp('world'), seed, size)
  contents = {name: _read(path) for name, path in report['files'].items()}
  assert report['counts'] == {n: len(lines) for n, lines in contents.items()}
  return contents


def _words(text):
  return re.findall(r'\w+|[^\w\s]', text.lower())


def _holds(text, answer):
  return f' {" ".join(_words(answer))} ' in f' {" ".join(_words(text))} '


def _entity(question, documents):
  """The title that a question names."""
  titles = {document['title'] for document in documents}
  return max((t for t in titles if _holds(question, t)), key=len)


def test_news_and_encyclopedia_share_no_wording():
  table = toy_facts.relations()
  shared = toy.words_of_news(table) & toy.words_of_encyclopedia(table)
  assert shared <= set(toy_text.SHARED_WORDS.split())


def test_table_is_whole():
  table = toy_facts.relations()
  assert len({(r.kind, r.name) for r in table}) == len(table)
  for relation in table:
    for template in relation.full + relation.news:
      assert '{e}' in template and '{v}' in template
      assert not template.startswith('{v}')  # taggers mistrust a first word
    for template in relation.again:
      assert template.startswith(('{They} ', '{Their} '))
      assert template.endswith('{v}.')
    for template in relation.questions:
      assert '{e}' in template and '{v}' not in template
  for key, count in collections.Counter(
    (r.kind, r.aspect, r.value_kind.removeprefix('early_')) for r in table
  ).items():
    assert count == 1, key


def test_names_are_not_ordinary_words():
  table = toy_facts.relations()
  ordinary = toy.words_of_news(table) | toy.words_of_encyclopedia(table)
  names = f'{toy_text.ADJECTIVES} {toy_text.NOUNS} {toy_text.EVENT_KINDS}'
  names += f' {toy_text.ORGANISATION_KINDS} Prize River Forest'
  words = names.lower().split()
  for firsts, lasts in (
    toy_text.GIVEN_NAMES,
    toy_text.FAMILY_NAMES,
    toy_text.PLACES,
    toy_text.COINED_WORDS,
  ):
    words += [a + b for a in firsts.split() for b in lasts.split()]
  assert len(set(words)) == len(words)
  assert not ordinary & set(words)


def test_same_seed_same_bytes(tmp_path):
  paths = [
    toy.write_world(tmp_path / name, seed, 'small')['files']
    for name, seed in (('a', 3), ('b', 3), ('c', 4))
  ]
  first, same, other = (
    {n: pathlib.Path(p).read_bytes() for n, p in f.items()} for f in paths
  )
  assert first == same
  assert all(first[name] != other[name] for name in first)


def test_unknown_size(tmp_path):
  with pytest.raises(ValueError, match="'huge', choose from full, small"):
    toy.write_world(tmp_path / 'world', 0, 'huge')
  assert not (tmp_path / 'world').exists()


def test_documents_fit_and_news_are_short(world):
  for document in world['encyclopedia'] + world['new_documents']:
    text = f'{document["title"]} {document["text"]}'
    assert 45 <= len(_words(text)) <= 61  # 64 with the special tokens
  ids = [d['id'] for d in world['encyclopedia'] + world['new_documents']]
  assert len(set(ids)) == len(ids)
  for document in world['news']:
    for sentence in document['text'].split('. '):
      assert 5 <= len(sentence.split()) <= 14


def test_encyclopedia_knows_every_word(world):
  counts = collections.Counter(
    word
    for document in world['encyclopedia']
    for word in _words(f'{document["title"]} {document["text"]}')
  )
  texts = [d['text'] for d in world['news'] + world['new_documents']]
  for name in world:
    if 'questions' in name:
      texts += [line['question'] for line in world[name]]
  missing = {word for text in texts for word in _words(text)} - set(counts)
  assert missing <= {'?', ':'}
  notes = toy.words_of_news(toy_facts.relations()) & set(counts)
  assert min(counts[word] for word in notes) >= 10


@pytest.mark.parametrize('new', [False, True], ids=['old', 'new'])
def test_one_document_of_an_entity_answers(world, new):
  documents = world['new_documents' if new else 'encyclopedia']
  names = (
    ['new_questions']
    if new
    else [f'questions_{split}' for split in ('train', 'dev', 'test')]
  )
  texts = collections.defaultdict(list)
  for document in documents:
    texts[document['title']].append(document['text'])
  assert all(len(own) == 3 for own in texts.values())
  asked = set()
  for question in [q for name in names for q in world[name]]:
    (answer,) = question['answers']
    entity = _entity(question['question'], documents)
    (gold,) = [text for text in texts[entity] if _holds(text, answer)]
    sentences = [s for s in gold.split('. ') if _holds(s, answer)]
    assert len(sentences) == 2
    assert len(set(sentences)) == 2
    asked.add((entity, answer))
  assert len(asked) == sum(len(world[name]) for name in names)


def test_new_people_are_nowhere_else(world):
  titles = {document['title'] for document in world['new_documents']}
  old = '\n'.join(d['text'] for d in world['encyclopedia'] + world['news'])
  assert not any(title in old for title in titles)


def test_every_fact_is_news_once(world):
  sentences = [
    sentence.removesuffix('.')
    for document in world['news']
    for sentence in document['text'].split('. ')
  ]
  assert len(set(sentences)) == len(sentences)
  assert len(sentences) == 3 * len(world['encyclopedia'])
  for question in world['questions_test'][:50]:
    entity = _entity(question['question'], world['encyclopedia'])
    (answer,) = question['answers']
    assert any(_holds(s, entity) and _holds(s, answer) for s in sentences)


def test_guessing_does_not_pay(world):
  """No answer is frequent, and no half of a name is one person's."""
  answers = collections.Counter(
    question['answers'][0] for question in world['questions_test']
  )
  assert max(answers.values()) <= 0.03 * answers.total()
  people = {
    document['title']
    for document in world['encyclopedia']
    if document['id'].startswith('person')
  }
  for part in (0, 1):
    bearers = collections.Counter(name.split()[part] for name in people)
    assert min(bearers.values()) >= 2


def test_relations_agree(world):
  values = collections.defaultdict(str)
  for document in world['encyclopedia'] + world['new_documents']:
    values[document['title']] += f' {document["text"]}'
  spouses = 0
  for title, text in values.items():
    lived = re.search(r'(?:lived until|forever in) (\d+)', text)
    if lived:
      born = re.search(r'(?:world|fell|dates|baby) (?:in|from) (\d+)', text)
      assert 25 <= int(lived[1]) - int(born[1]) <= 95
    married = re.search(r'(?:married|was wed to) (\w+ \w+)\.', text)
    if married:
      spouses += 1
      assert re.search(rf'(?:married|was wed to) {title}\.', values[married[1]])
    created = re.search(r'(?:created|is the maker of) (\w+ \w+)\.', text)
    if created and created[1] in values:
      assert _holds(values[created[1]], title)
  assert spouses
