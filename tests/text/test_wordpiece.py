import concurrent.futures
import hashlib
import os
import pickle
import random
import subprocess
import sys

import pytest
import tokenizers

from realm_jax.text.wordpiece import SPECIAL_TOKENS, WordPiece, train_vocab

_WORDS = """
  bank of england play ##ing ##er wor ##ld 3 5 . , - ' ( ) [ ] mask sep e
  istanbul \u65e5 \u672c a ##b naive u s # un ##k
"""
WORDS = _WORDS.split()


@pytest.fixture
def tokenizer(tmp_path):
  return _tokenizer(tmp_path, [*SPECIAL_TOKENS, *WORDS])


def _tokenizer(folder, vocab):
  path = folder / 'vocab.txt'
  path.write_bytes('\n'.join(vocab).encode() + b'\n')
  return WordPiece.from_file(path)


def _pieces(tokenizer, text):
  ids, offsets = tokenizer.encode(text)
  return [
    (tokenizer.vocab[number], text[start:end])
    for number, (start, end) in zip(ids, offsets, strict=True)
  ]


def test_encode_gives_pieces_and_their_characters(tokenizer):
  assert _pieces(tokenizer, 'The Playing  of W\u00f6rld-3.5') == [
    ('[UNK]', 'The'),
    ('play', 'Play'),
    ('##ing', 'ing'),
    ('of', 'of'),
    ('wor', 'W\u00f6r'),
    ('##ld', 'ld'),
    ('-', '-'),
    ('3', '3'),
    ('.', '.'),
    ('5', '5'),
  ]


def test_normalisation_is_berts(tokenizer):
  assert _pieces(tokenizer, '\u0130stanbul\u65e5\u672cNAI\u0308VE') == [
    ('istanbul', '\u0130stanbul'),
    ('\u65e5', '\u65e5'),
    ('\u672c', '\u672c'),
    ('naive', 'NAI\u0308VE'),
  ]
  # A control character is deleted, a no-break space divides.
  assert [p for p, _ in _pieces(tokenizer, 'ba\x00nk\xa0of\x0bengland')] == [
    'bank',
    '[UNK]',
  ]


def test_text_never_gives_control_ids(tokenizer):
  ids, _ = tokenizer.encode('[CLS] [SEP][MASK] [PAD] [sep] ##ing')
  control = {getattr(tokenizer, n + '_id') for n in ('pad', 'cls', 'sep')}
  assert not (control | {tokenizer.mask_id}) & set(ids)
  assert [p for p, _ in _pieces(tokenizer, '[MASK]')] == ['[', 'mask', ']']


def test_equals_tokenizers_on_any_text(tokenizer):
  plain = tokenizers.BertWordPieceTokenizer(
    {piece: i for i, piece in enumerate(tokenizer.vocab)}, lowercase=True
  )
  generator = random.Random(0)
  alphabet = (
    "abABuUs.,'-(#[] \t\n\x00\x0b\x1c\x85\xa0\u200b\u2003\u2028\u0301\u0130"
    '\u00e9\u03a3\u65e5\ufb01\ufffd\U0001f600'
  )
  for length in [*range(40)] * 25:
    text = ''.join(generator.choices(alphabet, k=length))
    expected = plain.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text) == (expected.ids, expected.offsets), text
    # From the memory too.
    assert tokenizer.encode(text)[0] == expected.ids


def test_memory_is_bounded(tokenizer, monkeypatch):
  monkeypatch.setattr('realm_jax.text.wordpiece._CACHE_LIMIT', 20)
  expected = tokenizer.encode('playing bank')
  for i in range(50):
    tokenizer.encode(f'a{i} b{i} bank')
    assert len(tokenizer._cache) <= 20
  assert tokenizer.encode('playing bank') == expected


def test_encode_of_nothing(tokenizer):
  assert tokenizer.encode_batch(['', ' \n', '\x00', 'bank']) == [
    ([], []),
    ([], []),
    ([], []),
    ([5], [(0, 4)]),
  ]


def test_encode_batch_is_encode_of_each(tokenizer):
  generator = random.Random(1)
  alphabet = 'abABu.,-[ \t\n\x00\x0b\x85\xa0\u0301\u0130\u00e9\u65e5'
  texts = [''.join(generator.choices(alphabet, k=n % 9)) for n in range(500)]
  assert tokenizer.encode_batch(texts) == list(map(tokenizer.encode, texts))
  assert tokenizer.encode_batch([]) == []


def test_threads_share_a_tokenizer(tokenizer):
  texts = [f'bank{n} w\u00f6rld{n % 7} playing{n % 50}' for n in range(300)] * 4
  fresh = pickle.loads(pickle.dumps(tokenizer))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(fresh.encode, texts))
  assert found == tokenizer.encode_batch(texts)


def test_long_texts_take_linear_time(tokenizer):
  # A second or two; hours if the time were quadratic.
  for unit in ('a.b', '\u00e9.', '\n', 'x', '\x00'):
    tokenizer.encode(unit * 500_000)


def test_attributes(tokenizer):
  assert tokenizer.vocab_size == len(tokenizer.vocab) == 5 + len(WORDS)
  assert (tokenizer.pad_id, tokenizer.unk_id) == (0, 1)
  assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (2, 3, 4)
  continuing = [piece for piece in WORDS if piece.startswith('##')]
  assert tokenizer.continues.sum() == len(continuing)
  assert not tokenizer.continues[tokenizer.vocab.index('#')]


def test_digest_is_of_content(tmp_path, tokenizer):
  content = (tmp_path / 'vocab.txt').read_bytes()
  expected = hashlib.sha256(content + b'\0bert-uncased').hexdigest()
  assert tokenizer.digest == expected
  copy = pickle.loads(pickle.dumps(tokenizer))
  assert copy.digest == tokenizer.digest
  assert copy.encode('playing') == tokenizer.encode('playing')


def test_decode(tokenizer):
  text = "bank of england's (u.s. naive-playing) 3.5, [mask]."
  ids, _ = tokenizer.encode(text)
  framed = [tokenizer.cls_id, *ids, tokenizer.sep_id, 0, 0]
  assert tokenizer.decode(framed) == text
  assert tokenizer.decode([]) == ''


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n', r'vocab.txt: has no \[MASK\]'),
    (b'[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\n', r"txt:1: '\[UNK\]'.*\[PAD\]"),
    (b'[PAD]\n[UNK]\n\n', 'vocab.txt:3: empty line'),
    (b'[PAD]\na\na\n', "vocab.txt:3: 'a' stands already in line 2"),
    (b'[PAD]\n\xff', 'vocab.txt: not UTF-8 at byte 6'),
    (b'', 'vocab.txt:1: empty line'),
  ],
)
def test_bad_vocabulary_is_refused(tmp_path, content, message):
  path = tmp_path / 'vocab.txt'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    WordPiece.from_file(path)


def test_windows_line_ends(tmp_path):
  path = tmp_path / 'vocab.txt'
  path.write_bytes('\r\n'.join([*SPECIAL_TOKENS, 'bank']).encode() + b'\r\n')
  assert WordPiece.from_file(path).encode('Bank')[0] == [5]


TEXTS = ['low lower lowest Low', 'new newer newest, low!', 'wide wider widest']


def test_train_vocab_joins_the_most_frequent(tmp_path):
  vocab = train_vocab(iter(TEXTS), 60)
  assert tuple(vocab[:5]) == SPECIAL_TOKENS
  assert len(set(vocab)) == len(vocab)
  # `low` stands there five times, more than any other part of a word.
  assert {'low', '##er', '##est', '!', ','} <= set(vocab)
  tokenizer = _tokenizer(tmp_path, vocab)
  ids, _ = tokenizer.encode(' '.join(TEXTS))
  assert tokenizer.unk_id not in ids


def test_train_vocab_keeps_its_size():
  for size in (24, 28, 33):
    assert len(train_vocab(TEXTS, size)) == size
  # Every word is one piece: nothing is left to join.
  full = train_vocab(TEXTS, 1000)
  assert len(full) == 34
  assert {'lowest', 'newest', 'widest'} <= set(full)


def test_train_vocab_is_the_same_everywhere():
  # Hash order differs from process to process.
  code = (
    'from realm_jax.text.wordpiece import train_vocab;'
    f'print(train_vocab({TEXTS!r}, 50))'
  )
  for seed in ('1', '2'):
    done = subprocess.run(
      [sys.executable, '-c', code],
      env={**os.environ, 'PYTHONHASHSEED': seed},
      capture_output=True,
      text=True,
      check=True,
    )
    assert done.stdout.strip() == str(train_vocab(TEXTS, 50))
  assert train_vocab(reversed(TEXTS), 50) == train_vocab(TEXTS, 50)


def test_train_vocab_refuses():
  with pytest.raises(ValueError, match='size 7: must be at least 10'):
    train_vocab(TEXTS, 7)
  with pytest.raises(ValueError, match='no words'):
    train_vocab([' ', ''], 50)
