"""Evaluation of each checkpoint while a run saves them."""

import json
import time
from typing import Any

from etils import epath

from realm_jax.data.questions import Question, read_questions
from realm_jax.evaluate.evaluate import check_output, score
from realm_jax.evaluate.restored import find_version, restore
from realm_jax.parallel import processes
from realm_jax.train.terminated import Stopped, stopped_at_once
from realm_jax.workdir import checkpoints, files, leases
from realm_jax.workdir.run import Workdir

_POLL_SECONDS = 5.0


def follow(
  workdir: str,
  questions: str,
  output: str,
  allow_stale_index: bool = False,
) -> int:
  """Evaluates checkpoints as they come, until the run has ended.

  The newest first whose index is there, each once; what is deleted before its
  turn comes is left out, and so is, with a word, what never has an index.
  Started again, it goes on. Prints the metrics of each, one line of JSON.

  Args:
    workdir: as in evaluate.evaluate; it may not be there yet.
    questions: as there.
    output: gets what evaluate leaves, of the newest checkpoint, and of each in
      a directory of its step's name.
    allow_stale_index: as there, while no refresher is running.

  Returns:
    Exit status: 0 done, 75 stopped by SIGTERM.

  Raises:
    ValueError: as there; or the last checkpoint has no index, and no refresher
      is running that would make it.
  """
  if not processes.alone():
    raise ValueError('--follow: evaluates in one process, not in several')
  directory = check_output(output)
  asked = read_questions(questions)
  try:
    with stopped_at_once():
      job = _Job(epath.Path(workdir), directory, allow_stale_index)
      while (step := job.next_step()) is not None:
        metrics = job.evaluate(step, asked, questions)
        if metrics is not None:
          print(json.dumps(metrics), flush=True)
  except Stopped:
    processes.say('evaluate: stopped by SIGTERM')
    return processes.SIGTERM_STATUS
  return 0


class _Job:
  """The checkpoints of a workdir, and those that were evaluated."""

  def __init__(
    self, path: epath.Path, directory: epath.Path, allow_stale: bool
  ):
    self._path, self._directory = path, directory
    self._allow_stale, self._stale = allow_stale, False
    self._done = set[int]()
    if directory.exists():
      self._done = {
        int(child.name)
        for child in directory.iterdir()
        if child.name.isdecimal() and (child / 'metrics.json').exists()
      }
    if self._done:
      processes.say(f'evaluate: {directory} has steps {sorted(self._done)}')

  def next_step(self) -> int | None:
    """Waits for a checkpoint to evaluate; None: none will come."""
    said = False
    while True:
      # In this order: what comes in between is seen the next time.
      finished = (self._path / 'finished.json').exists()
      refreshed = leases.refresher_lives(self._path)
      self._stale = self._allow_stale and not refreshed
      steps = checkpoints.steps(self._path)
      if not steps and not said:
        processes.say(f'evaluate: waiting for a trainer in {self._path}')
        said = True
      self._forget(steps)
      problems = {}
      for step in sorted(set(steps) - self._done, reverse=True):
        problem = self._why_not(step)
        if problem is None:
          return step
        problems[step] = problem
      if steps and (finished or Workdir.open(self._path).stage == 'import'):
        problem = problems.get(steps[-1])
        if problem is None:
          for step, why in problems.items():
            processes.say(f'evaluate: step {step} is left out: {why}')
          return None
        if not refreshed:
          raise problem
      time.sleep(_POLL_SECONDS)

  def evaluate(
    self, step: int, asked: list[Question], questions: str
  ) -> dict[str, Any] | None:
    """The metrics of a step; None: it cannot be evaluated any more."""
    try:
      restored = restore(str(self._path), step, None, self._stale)
    except (ValueError, OSError):
      there = step in checkpoints.steps(self._path)
      if there and self._why_not(step) is None:
        raise
      return None  # the step, or its index, was deleted just now
    # Its own is written last: that says that it was evaluated.
    places = [self._directory / str(step)]
    if step > max(self._done, default=-1):
      places.insert(0, self._directory)
    metrics = score(restored, asked, questions, places)
    self._done.add(step)
    return metrics

  def _forget(self, steps: list[int]) -> None:
    """Steps that the run no longer knows: it went on from an earlier one.

    The newest of `steps`, those that are there, is recorded at the next save.
    """
    if self._done:
      saved = files.read_lines(self._path / 'saved.jsonl')
      self._done &= {record['step'] for record in saved} | set(steps)

  def _why_not(self, step: int) -> ValueError | None:
    """Why a step cannot be evaluated yet; None: it can."""
    workdir = Workdir.open(self._path)
    if workdir.config.closed_book or workdir.stage == 'mlm':
      return None  # it has none, or is refused
    try:
      find_version(workdir, step, None, self._stale)
    except ValueError as error:
      return error
    return None
