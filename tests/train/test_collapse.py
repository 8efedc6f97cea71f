"""The alarm of a retrieval that has collapsed."""

import pytest

from realm_jax.train.collapse import CollapseAlarm

WELL = {
  'most_retrieved_share': 0.1,
  'null_probability': 0.3,
  'retrieval_entropy': 1.0,
}


@pytest.mark.parametrize(
  'name, value, said',
  [
    ('most_retrieved_share', 0.6, 'one block is retrieved for 55% of the'),
    ('null_probability', 0.97, 'the null document has probability 0.970'),
    ('retrieval_entropy', 0.001, 'the entropy of p(z|x) is 0.0010 nats'),
  ],
)
def test_rings_once_and_ends(capsys, name, value, said):
  alarm = CollapseAlarm(1000, 7)
  rung = []
  for step in range(40):
    bad = 15 <= step < 27
    values = WELL | ({name: value} if bad else {})
    rung.append(alarm.update(step, values)['retrieval_collapse'])
  # The mean of ten steps is past the threshold, and so is not a single one.
  assert sum(rung[:17]) == 0 and sum(rung[35:]) == 0
  assert rung[24] == 1
  [line] = capsys.readouterr().err.splitlines()
  assert 'retrieval has collapsed: ' + said in line


def test_does_not_ring_early_nor_of_few_blocks():
  alarm = CollapseAlarm(30, 7)
  for step in range(20):
    values = WELL | {'most_retrieved_share': 0.9}
    assert alarm.update(step, values) == {'retrieval_collapse': 0}
  alarm = CollapseAlarm(1000, 7)
  rung = [
    alarm.update(step, WELL | {'null_probability': 1.0}) for step in range(10)
  ]
  assert [x['retrieval_collapse'] for x in rung] == [0] * 9 + [1]
