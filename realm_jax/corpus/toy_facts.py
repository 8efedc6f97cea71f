"""Who and what there is in the toy world, and what is true of it (`toy.py`)."""

import dataclasses
import random
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from realm_jax.corpus import toy_text

MIDDLE_YEAR = 1760


@dataclasses.dataclass(frozen=True)
class Size:
  """How much of everything; each entity has three documents."""

  people: int  # even: they marry each other
  organisations: int
  works: int  # at most `people`, who are the authors
  places: int
  events: int  # as many as places, where they are held
  new_people: int  # even
  # Questions; no fact is asked twice.
  train: int
  dev: int
  test: int
  new_questions: int
  # Words that names are made of. Several entities share each.
  given_names: int = 80  # even: every other one is a woman's
  family_names: int = 80  # at most as many as given names
  place_names: int = 100  # at least `places`
  coined_words: int = 60  # of organisations, prizes, rivers, forests
  organisation_names: int = 90  # at least `organisations`
  other_titles: int = 120  # works without documents
  years: int = 60  # before MIDDLE_YEAR, and as many from it on


SIZES = {
  'full': Size(
    people=200,
    organisations=80,
    works=80,
    places=80,
    events=80,
    new_people=60,
    train=1500,
    dev=200,
    test=500,
    new_questions=100,
  ),
  'small': Size(
    people=110,
    organisations=30,
    works=30,
    places=0,
    events=0,
    new_people=20,
    train=500,
    dev=60,
    test=150,
    new_questions=40,
    given_names=40,
    family_names=40,
    place_names=60,
    coined_words=40,
    organisation_names=50,
    other_titles=60,
    years=40,
  ),
}


class Relation(NamedTuple):
  """What is said about one kind of entity, and in which words."""

  kind: str
  aspect: str
  name: str
  value_kind: str
  full: list[str]  # encyclopedia, naming the entity
  again: list[str]  # encyclopedia, with a pronoun
  news: list[str]
  questions: list[str]


class Entity(NamedTuple):
  kind: str
  name: str
  pronouns: tuple[str, str]  # She, Her


class Fact(NamedTuple):
  entity: Entity
  relation: Relation
  value: str

  def say(self, template: str) -> str:
    they, their = self.entity.pronouns
    return template.format(
      e=self.entity.name, v=self.value, They=they, Their=their
    )


def relations() -> list[Relation]:
  """The table of `toy_text.RELATIONS`, parsed."""
  table = []
  for paragraph in toy_text.RELATIONS.strip().split('\n\n'):
    head, *phrases = paragraph.split('\n')
    kind, aspect, name, value_kind = head.split()
    table.append(
      Relation(
        kind, aspect, name, value_kind, *(line.split(' | ') for line in phrases)
      )
    )
  return table


class Dealer:
  """Random choices that use all values equally often."""

  def __init__(self, random_: random.Random):
    self._random = random_
    self._decks: dict[str, list[str]] = {}

  def deal(
    self, deck_name: str, pool: Sequence[str], taken: Collection[str] = ()
  ) -> str:
    """The next value not in `taken` from a deck of shuffled values."""
    deck = self._decks.setdefault(deck_name, [])
    for position, value in enumerate(deck):
      if value not in taken:
        return deck.pop(position)
    if set(pool) <= set(taken):
      raise ValueError(f'{deck_name}: all {len(pool)} values are taken')
    deck.extend(self.shuffled(pool))
    return self.deal(deck_name, pool, taken)

  def shuffled(self, values: Iterable) -> list:
    values = list(values)
    self._random.shuffle(values)
    return values


class World:
  """The names and facts of one seed.

  Attributes:
    relations: those of the kinds of entities that this size has.
    facts: everything that Z says, entity by entity.
    new_facts: about people who are in none of `facts`.
  """

  def __init__(self, seed: int, size: Size):
    self._random = random.Random(f'{seed} facts')
    self._dealer = Dealer(self._random)
    self._size = size
    people = self._people()
    old, new = people[: size.people], people[size.people :]
    entities = self._name_things(people, old)
    self._linked = self._link(entities, old, new)
    kinds = {entity.kind for entity in entities}
    self.relations = [r for r in relations() if r.kind in kinds]
    self.facts = self._find_facts(entities)
    self.new_facts = self._find_facts(new)

  def _people(self) -> list[Entity]:
    names = _pairs(
      self._coin(toy_text.GIVEN_NAMES, self._size.given_names),
      self._coin(toy_text.FAMILY_NAMES, self._size.family_names),
      self._size.people + self._size.new_people,
    )
    return [
      Entity('person', name, ('He', 'His') if i % 2 else ('She', 'Her'))
      for i, name in enumerate(names)
    ]

  def _name_things(
    self, people: list[Entity], old_people: list[Entity]
  ) -> list[Entity]:
    """Fills the pools of values; returns the entities with documents."""
    size, shuffled = self._size, self._dealer.shuffled
    adjectives = shuffled(toy_text.ADJECTIVES.split())
    nouns = shuffled(toy_text.NOUNS.split())
    titles = _pairs(adjectives, nouns, len(people) + size.other_titles)
    self._masterpieces = titles[: len(people)]
    coined = self._coin(toy_text.COINED_WORDS, size.coined_words)
    years = [
      str(year)
      for year in range(MIDDLE_YEAR - size.years, MIDDLE_YEAR + size.years)
    ]
    self._pools = {
      'person': [person.name for person in old_people],
      'place': self._coin(toy_text.PLACES, size.place_names),
      'organisation': _pairs(
        coined, toy_text.ORGANISATION_KINDS.split(), size.organisation_names
      ),
      'work': titles[len(people) :],
      'event': _pairs(adjectives, toy_text.EVENT_KINDS.split(), size.events),
      'prize': [f'{word} Prize' for word in coined],
      'river': [f'{word} River' for word in coined],
      'forest': [f'{word} Forest' for word in coined],
      'early_year': years[: size.years],
      'late_year': years[size.years :],
      'year': years,
    }
    named = {
      'organisation': self._pools['organisation'][: size.organisations],
      'work': self._masterpieces[: size.works],
      'place': self._pools['place'][: size.places],
      'event': self._pools['event'],
    }
    return old_people + [
      Entity(kind, name, ('It', 'Its'))
      for kind, names in named.items()
      for name in names
    ]

  def _coin(self, syllables: tuple[str, str], count: int) -> list[str]:
    firsts, lasts = (text.split() for text in syllables)
    names = [(first + last).capitalize() for first in firsts for last in lasts]
    return self._random.sample(names, count)

  def _link(
    self, entities: list[Entity], old: list[Entity], new: list[Entity]
  ) -> dict[tuple[str, str], str]:
    """The facts that must agree with others: (entity, relation) to value."""
    linked = {}
    for person, title in zip([*old, *new], self._masterpieces, strict=True):
      birth = int(self._dealer.deal('birth', self._pools['early_year']))
      late_years = self._pools['late_year']
      no_age = [y for y in late_years if not 25 <= int(y) - birth <= 95]
      linked[person.name, 'birth_year'] = str(birth)
      linked[person.name, 'retirement'] = self._dealer.deal(
        'retirement', late_years, no_age
      )
      linked[person.name, 'work'] = title
      linked[title, 'author'] = person.name
      linked[title, 'year'] = str(birth + self._random.randint(20, 29))
    for group in (old, new):
      for one, other in zip(group[::2], group[1::2], strict=True):
        linked[one.name, 'spouse'] = other.name
        linked[other.name, 'spouse'] = one.name
    places = [e.name for e in entities if e.kind == 'place']
    for place, event in zip(places, self._pools['event'], strict=True):
      linked[place, 'feast'] = event
      linked[event, 'held_in'] = place
    return linked

  def _find_facts(self, entities: Sequence[Entity]) -> list[Fact]:
    """Every relation of every entity; no value twice for one entity."""
    facts = []
    for entity in entities:
      table = [r for r in self.relations if r.kind == entity.kind]
      values = {
        relation.name: self._linked[entity.name, relation.name]
        for relation in table
        if (entity.name, relation.name) in self._linked
      }
      for relation in table:
        if relation.name not in values:
          values[relation.name] = self._dealer.deal(
            f'{relation.kind} {relation.name}',
            self._pools[relation.value_kind],
            {entity.name, *values.values()},
          )
        facts.append(Fact(entity, relation, values[relation.name]))
    return facts


def _pairs(firsts: list[str], seconds: list[str], count: int) -> list[str]:
  """Distinct pairs; each first is used equally often, and each second."""
  return [
    f'{firsts[i % len(firsts)]} '
    f'{seconds[(i % len(firsts) + i // len(firsts)) % len(seconds)]}'
    for i in range(count)
  ]
