"""`--profile`: traces of chosen steps, and a run that does not change."""

import small_runs

from realm_jax import cli
from realm_jax.workdir import files


def test_chosen_steps_are_traced_and_the_run_stays_the_same(tmp_path, capsys):
  corpus = small_runs.make_corpus(tmp_path)
  experiment = small_runs.write_experiment(
    tmp_path / 'x.py', corpus, num_steps=3
  )
  seen = {}
  with small_runs.compile_once(tmp_path / 'cache'):
    for name, more in (('plain', []), ('traced', ['--profile=40,2,3,2'])):
      path = tmp_path / name
      arguments = ['ict', f'--config={experiment}', f'--workdir={path}', *more]
      assert cli.main(arguments) == 0
      lines = files.read_lines(path / 'metrics.jsonl')
      seen[name] = [(x['loss'], x['gradient_norm']) for x in lines]
  said = capsys.readouterr().err
  assert said.count('--profile: this run did not take step 40: no trace') == 1
  assert len(seen['plain']) == 3 and seen['plain'] == seen['traced']
  assert not (tmp_path / 'plain' / 'profile').exists()
  traces = (tmp_path / 'traced' / 'profile').glob('*/plugins/*/*/*.xplane.pb')
  assert sorted(x.relative_to(tmp_path).parts[2] for x in traces) == ['2', '3']
