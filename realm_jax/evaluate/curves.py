"""A plot of a pre-training run over its steps."""

from etils import epath

from realm_jax.workdir import files
from realm_jax.workdir.metrics import read_swaps

# Title, keys of metrics.jsonl, unit.
_CURVES = (
  ('loss', ('loss',), 'nats a masked span'),
  (
    'utility: of the mean passage, of the marginal, of what holds the masked',
    ('retrieval_utility', 'marginal_utility', 'target_utility'),
    'nats',
  ),
  (
    'null document: its probability; a passage holds what is masked',
    ('null_probability', 'target_retrieved'),
    'share of sentences',
  ),
  ('recall on dev questions', ('recall@1', 'recall@5'), 'percent'),
)


def plot(workdir: epath.PathLike, picture: epath.PathLike) -> None:
  """Draws a pre-training run: what it lost, retrieved and found.

  Args:
    workdir: of the pre-training run.
    picture: PNG file to write.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  lines = files.read_lines(epath.Path(workdir) / 'metrics.jsonl')
  swaps = read_swaps(workdir)
  figure, axes = pyplot.subplots(len(_CURVES), 1, figsize=(7, 10), sharex=True)
  for axis, (title, keys, unit) in zip(axes, _CURVES, strict=True):
    for key in keys:
      points = [
        (line['step'], line[key]) for line in lines if line.get(key) is not None
      ]
      if points:  # without dev questions there is no recall
        axis.plot(*zip(*points, strict=True), label=key)
    if axis.lines:
      axis.legend(frameon=False, fontsize=8)
    for swap in swaps:
      axis.axvline(swap['step'], color='0.85', zorder=0)
    axis.set_title(title, loc='left', fontsize=10)
    axis.set_ylabel(unit)
  axes[-1].set_xlabel('step (grey: a new index version)')
  figure.tight_layout()
  figure.savefig(picture, dpi=120)
  pyplot.close(figure)
