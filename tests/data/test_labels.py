import numpy as np
import pytest
from data_checks import write_documents

from realm_jax.corpus import change
from realm_jax.corpus.prepare import prepare
from realm_jax.corpus.store import Corpus
from realm_jax.data import labels
from realm_jax.data.labels import NO_ROW, AnswerLabels
from realm_jax.data.questions import Question
from realm_jax.text.answers import find_answers


def plain(number, *answers):
  return Question(str(number), 'who?', answers, False)


@pytest.fixture(scope='module')
def questions(corpus):
  words = sorted({w.strip('.') for w in corpus.text(3).split()})
  names = [word for word in words if word[0].isupper()]
  questions = [plain(i, *names[i : i + 2]) for i in range(len(names))]
  return [
    *questions,
    plain(90, 'The river!', 'old'),
    plain(91, 'everybody in BAKILU knows'),
    plain(92, 'Zanzibar'),
    plain(93, 'the'),
    plain(94, 'Everybody', 'Bakilu'),
    Question('95', 'what?', (r'sto.e|\bknows\b',), True),
    Question('96', 'what?', ('[A-Z]\\w+', 'x*'), True),
  ]


def brute_force(question, corpus, row, width):
  """Wordpieces of the answers, None without an answer; all widths counted."""
  mode = 'regex' if question.regex else 'normalized'
  text = corpus.text(row)
  characters = find_answers(text, question.answers, mode)
  if not characters:
    return None
  _, offsets = corpus.tokenizer.encode(text)
  spans = []
  for start, end in characters:
    inside = [
      place
      for place, (first, last) in enumerate(offsets)
      if first < end and last > start
    ]
    if inside and inside[-1] - inside[0] < width:
      spans.append((inside[0], inside[-1]))
  return list(dict.fromkeys(spans))


def test_labels_against_brute_force(corpus, questions, monkeypatch):
  monkeypatch.setattr(labels, '_CHUNK', 50)
  width = 3
  built = AnswerLabels.build(questions, corpus, 200, 12, width)
  row_QC, start_QCS, end_QCS = built.take(np.arange(len(questions)))
  assert row_QC.dtype == start_QCS.dtype == end_QCS.dtype == np.int32
  assert row_QC.shape == (len(questions), 200)
  assert end_QCS.shape == (len(questions), 200, 12)
  wide = 0
  for number, question in enumerate(questions):
    expected = {
      row: spans
      for row in range(corpus.num_blocks)
      if (spans := brute_force(question, corpus, row, width)) is not None
    }
    rows = row_QC[number][row_QC[number] != NO_ROW].tolist()
    assert rows == sorted(expected)
    assert (row_QC[number, len(rows) :] == NO_ROW).all()
    for place, row in enumerate(rows):
      spans = [
        (int(start), int(end))
        for start, end in zip(
          start_QCS[number, place], end_QCS[number, place], strict=True
        )
        if start >= 0
      ]
      assert spans == expected[row][:12]
      wide += not spans
    assert (start_QCS[number, len(rows) :] == -1).all()
    assert (end_QCS[number, len(rows) :] == -1).all()
  assert wide > 0
  assert built.counts['rows_without_span'] == wide
  assert built.counts['questions_without_answer'] == 2  # Zanzibar, the
  assert built.counts['questions_capped'] == 0


def test_spans_are_the_answers_wordpieces(corpus):
  built = AnswerLabels.build([plain(0, 'stone')], corpus, 200, 4, 10)
  row_BC, start_BCS, end_BCS = built.take(np.array([0]))
  row = int(row_BC[0, 0])
  tokens = corpus.tokens(np.array([row]))[0].tolist()
  head = tokens.index(corpus.tokenizer.sep_id) + 1
  start, end = head + start_BCS[0, 0, 0], head + end_BCS[0, 0, 0]
  assert tokens[start : end + 1] == corpus.tokenizer.encode('stone')[0]


def test_caps_are_counted(corpus):
  asked = [plain(0, 'old'), plain(1, 'Zanzibar')]
  full = AnswerLabels.build(asked, corpus, 200, 12, 10)
  capped = AnswerLabels.build(asked, corpus, 5, 1, 10)
  row_BC, start_BCS, _ = full.take(np.array([0]))
  few_BC, few_start_BCS, _ = capped.take(np.array([0]))
  np.testing.assert_array_equal(few_BC, row_BC[:, :5])
  np.testing.assert_array_equal(few_start_BCS, start_BCS[:, :5, :1])
  gold = int((row_BC != NO_ROW).sum())
  assert capped.counts['questions_capped'] == 1
  assert capped.counts['rows_capped'] == gold - 5
  assert capped.counts['spans_capped'] == (start_BCS[:, :5, 1:] >= 0).sum()
  assert capped.counts['spans_capped'] > 0


def test_removed_rows_hold_no_answer(paths, tmp_path):
  write_documents(tmp_path / 'z.jsonl', 30, seed=5)
  prepare(
    [str(tmp_path / 'z.jsonl')],
    format='jsonl',
    vocab=str(paths / 'z' / 'vocab.txt'),
    output=str(tmp_path / 'z'),
    block_length=64,
  )
  asked = [plain(0, 'old')]
  before = AnswerLabels.build(
    asked, Corpus.open(str(tmp_path / 'z')), 99, 1, 10
  )
  change.remove(str(tmp_path / 'z'), [f'd{n}' for n in range(15)])
  corpus = Corpus.open(str(tmp_path / 'z'))
  after = AnswerLabels.build(asked, corpus, 99, 1, 10)
  rows = before.take(np.array([0]))[0][0]
  rows = rows[rows != NO_ROW]
  left = after.take(np.array([0]))[0][0]
  alive_N = np.asarray(corpus.alive(0, corpus.num_blocks))
  assert left[left != NO_ROW].tolist() == rows[alive_N[rows]].tolist()
  assert not alive_N[rows].all()
