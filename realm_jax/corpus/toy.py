"""The built-in toy world: invented facts, told twice in different words.

An encyclopedia Z has three documents an entity, each of another aspect and all
with the entity's name as title; each fact is in one of them, said twice, so
that copying can be learned from Z alone. The news X tell the same facts, once
each, in other words, which the questions share. Names are made of two words
that others bear too. A retriever warmed up on Z alone can therefore find the
entity but not tell which of its documents has the answer: that is left for
pre-training on X to learn.
"""

import json
import os
import random
import re
from collections.abc import Iterable, Sequence

from realm_jax.corpus import toy_text
from realm_jax.corpus.toy_facts import (
  SIZES,
  Dealer,
  Entity,
  Fact,
  Relation,
  Size,
  World,
)


def write_world(
  directory: str, seed: int = 0, size: str = 'full'
) -> dict[str, dict]:
  """Writes the toy world as JSON lines.

  Args:
    directory: made if absent; files of an earlier world are replaced.
    seed: the same seed gives the same bytes.
    size: a key of `toy_facts.SIZES`.

  Returns:
    `files`: name to path, `counts`: name to number of lines, for
    `encyclopedia` (Z), `news` (X), `questions_train`, `questions_dev`,
    `questions_test` (no fact is asked in two of them), and `new_documents`
    with `new_questions`: people who are in no other file.

  Raises:
    ValueError: a size that does not exist.
  """
  if size not in SIZES:
    raise ValueError(f'size: {size!r}, choose from {", ".join(SIZES)}')
  os.makedirs(directory, exist_ok=True)
  files, counts = {}, {}
  for name, lines in _Writer(seed, SIZES[size]).contents().items():
    files[name] = os.path.join(directory, f'{name}.jsonl')
    counts[name] = len(lines)
    with open(files[name], 'w', encoding='utf-8') as file:
      file.writelines(json.dumps(line) + '\n' for line in lines)
  return {'files': files, 'counts': counts}


def words_of_news(table: Iterable[Relation]) -> set[str]:
  """The words that news and questions are made of."""
  phrases = [p for r in table for p in (*r.news, *r.questions)]
  return _words([*phrases, *toy_text.OPENINGS])


def words_of_encyclopedia(table: Iterable[Relation]) -> set[str]:
  """The words of the encyclopedia's own phrases."""
  phrases = [p for r in table for p in (*r.full, *r.again)]
  return _words([*phrases, *toy_text.NOTES])


def _words(templates: Iterable[str]) -> set[str]:
  return {
    word
    for template in templates
    for word in re.findall('[a-z]+', re.sub('{.*?}', '', template).lower())
  }


class _Writer:
  """Puts the facts of a world into words."""

  def __init__(self, seed: int, size: Size):
    self._random = random.Random(f'{seed} texts')
    self._dealer = Dealer(self._random)
    self._size = size
    self._world = World(seed, size)
    table = self._world.relations
    self._note_words = sorted(
      words_of_news(table) - words_of_encyclopedia(table)
    )

  def contents(self) -> dict[str, list[dict]]:
    size, world, shuffled = self._size, self._world, self._dealer.shuffled
    held_out = size.test + size.dev
    asked = shuffled(world.facts)[: held_out + size.train]
    new_asked = shuffled(world.new_facts)[: size.new_questions]
    return {
      'encyclopedia': self._encyclopedia(world.facts, ''),
      'news': self._news(world.facts),
      'questions_train': self._questions(asked[held_out:], 'train'),
      'questions_dev': self._questions(asked[size.test : held_out], 'dev'),
      'questions_test': self._questions(asked[: size.test], 'test'),
      'new_documents': self._encyclopedia(world.new_facts, 'new-'),
      'new_questions': self._questions(new_asked, 'new'),
    }

  def _encyclopedia(self, facts: Sequence[Fact], prefix: str) -> list[dict]:
    documents: dict[tuple[Entity, str], list[Fact]] = {}
    for fact in facts:
      documents.setdefault((fact.entity, fact.relation.aspect), []).append(fact)
    numbers: dict[Entity, int] = {}
    lines = []
    for (entity, aspect), facts_here in documents.items():
      number = numbers.setdefault(entity, len(numbers))
      sentences = [
        *self._say(facts_here, 'full'),
        self._note(entity),
        *self._say(facts_here, 'again'),
      ]
      lines.append(
        {
          'id': f'{prefix}{entity.kind}-{number:04d}-{aspect}',
          'title': entity.name,
          'text': ' '.join(sentences),
        }
      )
    return lines

  def _note(self, entity: Entity) -> str:
    words: list[str] = []
    while len(words) < toy_text.WORDS_IN_NOTE:
      words.append(self._dealer.deal('note', self._note_words, words))
    return self._random.choice(toy_text.NOTES).format(*words, e=entity.name)

  def _news(self, facts: Sequence[Fact]) -> list[dict]:
    facts_of: dict[Entity, list[Fact]] = {}
    for fact in facts:
      facts_of.setdefault(fact.entity, []).append(fact)
    step = toy_text.SENTENCES_IN_NEWS
    texts = []
    for facts_here in facts_of.values():
      sentences = [
        self._sentence_of_news(fact)
        for fact in self._dealer.shuffled(facts_here)
      ]
      for start in range(0, len(sentences), step):
        texts.append(' '.join(sentences[start : start + step]))
    return [
      {'id': f'news-{number:04d}', 'title': 'News', 'text': text}
      for number, text in enumerate(self._dealer.shuffled(texts))
    ]

  def _sentence_of_news(self, fact: Fact) -> str:
    """A fact as news tell it, now and then as a quiz or in borrowed words."""
    choose, manner = self._random.choice, self._random.random()
    if manner < toy_text.ASKED:
      question = fact.say(choose(fact.relation.questions))
      return f'{question.removesuffix("?")}: {fact.value}.'
    borrows = manner < toy_text.ASKED + toy_text.BORROWED_WORDING
    clause = choose(fact.relation.full if borrows else fact.relation.news)
    return fact.say(f'{choose(toy_text.OPENINGS)} {clause.removesuffix(".")}.')

  def _questions(self, facts: Sequence[Fact], name: str) -> list[dict]:
    return [
      {
        'id': f'{name}-{number:04d}',
        'question': fact.say(self._random.choice(fact.relation.questions)),
        'answers': [fact.value],
      }
      for number, fact in enumerate(facts)
    ]

  def _say(self, facts: Sequence[Fact], form: str) -> list[str]:
    """The facts in random order, each in one of its wordings of this form."""
    return [
      fact.say(self._random.choice(getattr(fact.relation, form)))
      for fact in self._dealer.shuffled(facts)
    ]
