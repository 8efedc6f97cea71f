"""Splitting documents into blocks."""

import collections

import numpy as np
import pytest

from realm_jax.corpus.blocks import split_document, split_documents
from realm_jax.corpus.sources import Document
from realm_jax.text.sentences import split_sentences
from realm_jax.text.tagger import RuleTagger
from realm_jax.text.wordpiece import WordPiece


@pytest.fixture(scope='module')
def tokenizer(vocab):
  return WordPiece.from_file(vocab)


def split(text, tokenizer, block_length, title='King', tagger=None):
  counts = collections.Counter()
  blocks = split_document(
    Document('d', title, text),
    tokenizer,
    tagger or RuleTagger(),
    block_length,
    counts,
  )
  return blocks, counts


def check(text, blocks, tokenizer, block_length):
  """What holds for any text: nothing is lost, and bodies encode their text."""
  for block in blocks:
    assert block.body.tolist() == tokenizer.encode(block.text)[0]
    assert 0 < len(block.body) <= block_length - 3 - len(block.title)
    bounds = [0, *(sentence.end for sentence in block.sentences)]
    assert [s.start for s in block.sentences] == bounds[:-1]
    assert bounds[-1] == len(block.body)
  place = 0
  for block in blocks:
    found = text.find(block.text, place)
    assert found >= 0
    assert not tokenizer.encode(text[place:found])[0]
    place = found + len(block.text)
  assert not tokenizer.encode(text[place:])[0]


def test_packs_whole_sentences_greedily(tokenizer):
  # 5 wordpieces each with the period; a title of one leaves 16.
  text = 'The king was born. The river was found. Anna was in house. ' * 2
  blocks, counts = split(text.strip(), tokenizer, 20)
  assert [len(block.sentences) for block in blocks] == [3, 3]
  assert [len(block.body) for block in blocks] == [15, 15]
  assert blocks[0].text == text[:58]
  check(text, blocks, tokenizer, 20)
  assert counts['num_cut_sentences'] == 0
  blocks, _ = split(text, tokenizer, 18)
  assert [len(block.sentences) for block in blocks] == [2, 2, 2]


def test_equal_sentences_have_equal_hashes(tokenizer):
  text = 'The king was born. The river was found. The KING was  born.'
  blocks, _ = split(text, tokenizer, 64)
  first, second, third = (s.hash for s in blocks[0].sentences)
  assert first == third != second
  # A fixed value: stores outlive versions of Python and numpy.
  assert first == 10009551929403286475


def test_cuts_a_sentence_that_no_block_can_hold(tokenizer):
  long = 'The ' + ' '.join(['river of the king the'] * 10)
  text = f'Anna was born. {long}. She was found.'
  blocks, counts = split(text, tokenizer, 24)
  check(text, blocks, tokenizer, 24)
  assert counts['num_cut_sentences'] == 1
  assert [len(block.body) for block in blocks] == [4, 20, 20, 16]
  assert [len(block.sentences) for block in blocks] == [1, 1, 1, 2]


def test_cuts_a_word_that_no_block_can_hold(tokenizer):
  # One word of 60 wordpieces, then Hangul, one character several of them.
  for text in ('x' * 60, 'of ' + 'xy' * 40 + ' river', '가각' * 20):
    blocks, counts = split(text, tokenizer, 16)
    check(text, blocks, tokenizer, 16)
    assert counts['num_cut_sentences'] == (1 if text.isascii() else 0)


def test_long_title_leaves_half_of_the_room(tokenizer):
  text = 'The king was born.'
  blocks, counts = split(text, tokenizer, 23, title='river ' * 30)
  assert len(blocks[0].title) == 10
  assert counts['num_cut_titles'] == 1
  check(text, blocks, tokenizer, 23)


def test_document_without_a_wordpiece_is_counted(tokenizer):
  blocks, counts = split('\u200b\u0085', tokenizer, 64)
  assert blocks == []
  assert counts['num_empty_documents'] == 1


def test_salient_spans_are_whole_words_in_order(tokenizer):
  text = 'the river was near. In Marbach she found Karl Lund and 17 kings.'

  def tagger(sentence):
    if 'Marbach' not in sentence:
      return []
    # Half a word, two words, and one that the span before has taken.
    wanted = ('Marb', 'Karl Lund', 'Lun', '17')
    return [(sentence.index(w), sentence.index(w) + len(w)) for w in wanted]

  blocks, counts = split(text, tokenizer, 64, tagger=tagger)
  first, second = blocks[0].sentences
  assert first.spans == []
  assert counts['num_sentences_without_span'] == 1
  spans = [tokenizer.decode(blocks[0].body[a:b]) for a, b in second.spans]
  assert spans == ['marbach', 'karl lund', '17']


def test_no_word_boundary_between_sentences_joins_them(tokenizer):
  # The tokenizer deletes a form feed, so that "born" and "She" are one word.
  text = 'Anna was born\n\x0c\nShe found the king.'
  assert len(split_sentences(text)) == 2
  joined = text.replace('\n\x0c\n', '\x0c')
  for source in (text, joined):
    blocks, _ = split(source, tokenizer, 64)
    check(source, blocks, tokenizer, 64)


@pytest.mark.parametrize('block_length', [16, 40])
def test_any_text_is_kept_whole(tokenizer, block_length):
  rng = np.random.default_rng(0)
  pool = [
    *'aeiouxyz019.,!?"\'()-\n\t  \x00\x0b\x0c\x1f\x85\xa0\u200b\u2028\u3000',
    *'éÉßİŁñ各国がㅏ한\u0301\u0300\U0001f600',
    *('The ', 'King. ', ' born', 'U.S. ', '. ', '3.5 ', 'x' * 45, 'é' * 110),
  ]
  for _ in range(150):
    text = ''.join(rng.choice(pool, rng.integers(1, 120)))
    blocks, _ = split(text, tokenizer, block_length)
    check(text, blocks, tokenizer, block_length)


def test_many_documents_are_split_as_one_by_one(tokenizer):
  rng = np.random.default_rng(1)
  pool = [
    *('The king. ', 'Anna ', 'born ', 'U.S. ', '3.5 ', '. ', '\n\n', ' 17 '),
    *('\x0b', '\u200b', '\x85', '\u0301', '\u65e5', 'x' * 45, '\uac00' * 20),
  ]
  documents = [
    Document(
      str(number),
      'river ' * rng.integers(1, 15),
      ''.join(rng.choice(pool, rng.integers(1, 50))),
    )
    for number in range(200)
  ]
  several, single = collections.Counter(), collections.Counter()
  tagger = RuleTagger()
  found = split_documents(documents, tokenizer, tagger, 20, several)
  for document, blocks in zip(documents, found, strict=True):
    expected = split_document(document, tokenizer, tagger, 20, single)
    assert [_content(block) for block in blocks] == [
      _content(block) for block in expected
    ]
  assert several == single
  assert all(several.values())


def _content(block):
  return block.title.tolist(), block.body.tolist(), block.text, block.sentences
