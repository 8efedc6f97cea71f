"""Invented documents, and batches taken apart again."""

import json

import numpy as np

SYLLABLES = ('ba', 'do', 'ki', 'lu', 'me', 'no', 'ra', 'si', 'ta', 'vu')
COMMON = ('river', 'saw', 'the', 'old', 'green', 'town', 'near', 'a', 'stone')
TWICE = 'Everybody in Bakilu knows this sentence.'


def write_documents(path, count, seed, one_sentence=0.3):
  """Documents of one to eight sentences; TWICE stands in every seventh."""
  rng = np.random.default_rng(seed)

  def name():
    return ''.join(rng.choice(SYLLABLES, 3)).capitalize()

  def sentence():
    words = rng.choice(COMMON, int(rng.integers(2, 9))).tolist()
    if rng.random() < 0.7:
      words.insert(1, name())
    return ' '.join(words).capitalize() + '.'

  with open(path, 'w', encoding='utf-8') as file:
    for number in range(count):
      size = 1 if rng.random() < one_sentence else rng.integers(2, 9)
      text = []
      for _ in range(size):
        made = sentence().split(' ')
        if rng.random() < 0.7:
          made.insert(1, name())
        text.append(' '.join(made))
      if number % 7 == 3:
        text.insert(1, TWICE)
      record = {'id': f'd{number}', 'title': name(), 'text': ' '.join(text)}
      file.write(json.dumps(record) + '\n')


def content(row_L):
  return row_L[row_L != 0].tolist()


def sentences_of(corpus, row):
  """Token ids of each sentence, and the tokens before the body."""
  tokenizer, table = corpus.tokenizer, corpus.sentences
  tokens = content(corpus.tokens(np.array([row]))[0])
  head = tokens.index(tokenizer.sep_id) + 1
  first, last = table.block_offsets[row : row + 2]
  return tokens[:head], [
    tokens[head + table.start[s] : head + table.end[s]]
    for s in range(first, last)
  ]


def unmask(masked_BL, position_BM, target_BM, weight_BM):
  restored_BL = masked_BL.copy()
  for row, (places, tokens, weights) in enumerate(
    zip(position_BM, target_BM, weight_BM, strict=True)
  ):
    for place, token, weight in zip(places, tokens, weights, strict=True):
      if weight:
        restored_BL[row, place] = token
  return restored_BL
