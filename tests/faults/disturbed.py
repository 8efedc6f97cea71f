"""A run that is disturbed at seeded moments, and what must hold of it.

Its processes are killed, its index versions damaged, a second refresher is
started, and the clock by which leases are old is set far ahead.
"""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import time
from collections.abc import Callable

import numpy as np
import small_runs

from realm_jax.workdir import checkpoints, files, leases, rows, versions

# Seconds after its start at which a process is killed: while it imports,
# compiles, restores, trains or embeds.
_EARLIEST, _LATEST = 0.5, 10.0
_STALL = 2.0
_PATIENCE = 240.0
_A_WHILE = 5.0  # for a version of the newest checkpoint, if one is to come

REFRESH = {'where': 'separate', 'poll_seconds': 0.1, 'batch_size': 16}
KEYS = {
  # Steps without end: the schedule of the learning rate depends on num_steps.
  'num_steps': 1_000_000,
  'checkpoint_every': 25,
  'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 10},
}


class Disturbed:
  """A trainer and its refresher, each of one or two processes.

  Attributes:
    counts: of what was done to them.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    cache: pathlib.Path,
    seed: int,
    size: int,
    keep: int = 100_000,  # to replay their use
  ):
    keys = {**KEYS, 'index': {'keep': keep}}
    corpus = small_runs.make_corpus(folder)
    small_runs.write_experiment(
      folder / 'run.py', corpus, refresh=REFRESH, **keys
    )
    replay = REFRESH | {'replay': str(folder / 'w' / 'swaps.jsonl')}
    small_runs.write_experiment(
      folder / 'replay.py', corpus, refresh=replay, **keys
    )
    self.workdir = folder / 'w'
    self._folder, self._cache, self._size = folder, cache, size
    self._random = random.Random(seed)
    self._running: dict[str, list[subprocess.Popen]] = {}
    self.counts: collections.Counter[str] = collections.Counter()

  def start(self) -> None:
    for role in ('trainer', 'refresher'):
      self._start(role)

  def kill(self, times: int) -> None:
    """Kills one process after the other, each time starting its job again."""
    for _ in range(times):
      role = self._random.choice(('trainer', 'refresher'))
      time.sleep(self._random.uniform(_EARLIEST, _LATEST))
      victim = self._random.randrange(self._size)
      self._kill(role, victim)
      self._start(role)

  def stall(self, times: int) -> None:
    """Holds a job up for seconds, as a slow store would, wherever it is."""
    for _ in range(times):
      role = self._random.choice(('trainer', 'refresher'))
      time.sleep(self._random.uniform(0, _STALL))
      process = self._random.choice(self._running[role])
      process.send_signal(signal.SIGSTOP)
      time.sleep(self._random.uniform(0, _STALL))
      process.send_signal(signal.SIGCONT)
      self.counts[f'{role}s stalled'] += 1

  def damage(self, how: Callable[[bytes], bytes]) -> None:
    """Changes a version before the trainer has read it.

    Waits until the trainer uses another one, and what was damaged is deleted.
    """
    self._until(lambda: self._version_used() > 0)
    while (version := self._damage_next(how)) is None:
      time.sleep(1.0)
    gone = versions.directory(self.workdir / 'index', version)
    self._until(lambda: not gone.exists())
    self.counts['versions damaged'] += 1

  def _damage_next(self, how: Callable[[bytes], bytes]) -> int | None:
    """Changes the next version; None: there was none, or nobody read it."""
    trainer, index = self._running['trainer'], self.workdir / 'index'
    for process in trainer:
      process.send_signal(signal.SIGSTOP)
    seen = max(versions.list_versions(index))
    new: list[int] = []
    deadline = time.monotonic() + _A_WHILE
    while not new and time.monotonic() < deadline:
      time.sleep(0.02)
      new = [v for v in versions.list_versions(index) if v > seen]
    chunk = versions.directory(index, seen + 1) / 'rows' / 'c' / '0' / '0'
    if new:
      data = chunk.read_bytes()
      chunk.write_bytes(how(data))
    for process in trainer:
      process.send_signal(signal.SIGCONT)
    if not new:
      return None
    self._until(lambda: self._version_used() > new[0])
    said = (self._folder / 'said.txt').read_text()
    if f'index version {new[0]} passed over: {chunk}: ' in said:
      return new[0]
    # A newer one came before the trainer had looked at it; it may be gone.
    with contextlib.suppress(FileNotFoundError):
      chunk.write_bytes(data)
    return None

  def start_a_second_refresher(self) -> None:
    self._until(lambda: leases.refresher_lives(self.workdir))
    arguments = ['refresh', '--follow', '--workdir', str(self.workdir)]
    second = small_runs.start(arguments, self._cache, stderr=subprocess.PIPE)
    statuses, said = small_runs.finish([second])
    assert statuses == [2]
    assert 'error: another refresher is running in' in said[0]
    self.counts['second refreshers'] += 1

  def hold_a_version(self) -> tuple[int, leases.Lease]:
    """A lease of this process on the version in use, and which that is."""
    self._until(lambda: self._version_used() > 0)
    version = self._version_used()
    lease = leases.Lease(self.workdir, 'reader')
    lease.take([version])
    assert version in versions.list_versions(self.workdir / 'index')
    return version, lease

  def age_leases(self) -> None:
    """By the clock of the file system all that is held was held long ago."""
    for lease in (self.workdir / 'leases').iterdir():
      with contextlib.suppress(FileNotFoundError):  # it ended just now
        os.utime(lease, (0, 0))
    self.counts['leaps of the clock'] += 1

  def end(self) -> int:
    """Lets both come to a swap once more, and stops them; the last step."""
    newest = max(versions.list_versions(self.workdir / 'index'), default=1)
    self._until(lambda: self._version_used() > newest)
    seen = self._newest_step()
    self._until(lambda: self._newest_step() > seen + 5)
    for role in ('trainer', 'refresher'):
      self._stop(role)
    return checkpoints.steps(self.workdir)[-1]

  def replay(self, last: int) -> list[tuple[int, float]]:
    """The losses of an undisturbed run with the same swaps."""
    again = self._folder / 'again'
    arguments = ['pretrain', '--config', 'replay.py']
    self._running = {'replay': self._run(arguments, again, self._size)}
    self._until(lambda: newest_step(again) >= last, again)
    self._stop('replay')
    return [pair for pair in losses(again) if pair[0] <= last]

  def kill_all(self) -> None:
    for process in itertools.chain(*self._running.values()):
      if process.poll() is None:
        process.kill()
        process.wait()

  def _start(self, role: str) -> None:
    follow = ['refresh', '--follow']
    train = ['pretrain', '--config', 'run.py']
    arguments = train if role == 'trainer' else follow
    self._running[role] = self._run(arguments, self.workdir, self._size)

  def _run(
    self, arguments: list[str], workdir: pathlib.Path, size: int
  ) -> list[subprocess.Popen]:
    arguments = [
      str(self._folder / x) if x.endswith('.py') else x for x in arguments
    ]
    arguments += ['--workdir', str(workdir)]
    # What they say goes to files: nobody reads a pipe meanwhile.
    said = open(self._folder / 'said.txt', 'a')  # noqa: SIM115
    with said:
      options = {'stdout': said, 'stderr': said}
      if size == 1:
        return [small_runs.start(arguments, self._cache, **options)]
      return small_runs.start_cluster(
        arguments, self._cache, size, options=options
      )

  def _kill(self, role: str, victim: int) -> None:
    cluster = self._running[role]
    for process in cluster:
      assert process.poll() is None, f'{role} ended by itself\n{self.said()}'
    cluster[victim].kill()
    # The others of its run end by themselves.
    for process in cluster:
      process.wait(timeout=_PATIENCE)
    self.counts[f'{role}s killed'] += 1

  def _stop(self, role: str) -> None:
    self._running[role][-1].send_signal(signal.SIGTERM)
    for process in self._running[role]:
      assert process.wait(timeout=_PATIENCE) == 75, self.said()

  def said(self) -> str:
    return (self._folder / 'said.txt').read_text()[-4000:]

  def _newest_step(self) -> int:
    return newest_step(self.workdir)

  def _version_used(self) -> int:
    swaps = files.read_lines(self.workdir / 'swaps.jsonl')
    return swaps[-1]['version'] if swaps else 0

  def _until(self, condition, workdir: pathlib.Path | None = None) -> None:
    """Waits; longer as long as a trainer comes on, if its workdir is given."""
    deadline, seen = time.monotonic() + _PATIENCE, 0
    while not condition():
      if workdir is not None and (step := newest_step(workdir)) > seen:
        deadline, seen = time.monotonic() + _PATIENCE, step
      assert time.monotonic() < deadline, self.said()
      for process in itertools.chain(*self._running.values()):
        assert process.poll() is None, self.said()
      time.sleep(0.1)


def newest_step(workdir: pathlib.Path) -> int:
  """Of the last whole line of the metrics; reads no more than their end."""
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return 0
  with path.open('rb') as file:
    file.seek(max(path.stat().st_size - 8192, 0))
    lines = file.read().split(b'\n')[:-1]
  return json.loads(lines[-1])['step'] if lines else 0


def losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
  return [
    (x['step'], x['loss']) for x in files.read_lines(workdir / 'metrics.jsonl')
  ]


def check_workdir(
  workdir: pathlib.Path, keep: int | None = None
) -> dict[str, int]:
  """Everything on disk is whole and belongs there; counts of it.

  Args:
    workdir: of a run that was stopped.
    keep: how many versions nobody uses may be there; None: any number.
  """
  index = workdir / 'index'
  numbers = versions.list_versions(index)
  # Nothing but whole versions: of their own embedder, every chunk right.
  assert sorted(child.name for child in index.iterdir()) == [
    f'{number:06d}' for number in numbers
  ]
  for number in numbers:
    manifest = versions.read_manifest(index, number)
    record = checkpoints.read_record(workdir, manifest.checkpoint_step)
    assert manifest.embedder_digest == record['embedder_digest']
    rows_NE = rows.read_rows(index, number, 0, manifest.rows)
    assert np.isfinite(rows_NE.astype(np.float32)).all()
  made = [versions.read_manifest(index, n).checkpoint_step for n in numbers]
  assert made == sorted(made)  # never an older one after a newer one
  swaps = files.read_lines(workdir / 'swaps.jsonl')
  assert [x['step'] for x in swaps] == sorted(x['step'] for x in swaps)
  if keep is None:
    assert {x['version'] for x in swaps} <= set(numbers)
  else:
    resumable = {
      checkpoints.read_record(workdir, step)['index_version']
      for step in checkpoints.steps(workdir)
    }
    assert resumable <= set(numbers)
    assert len(set(numbers) - resumable) <= keep
  for line in files.read_lines(workdir / 'metrics.jsonl'):
    used = [swap for swap in swaps if swap['step'] < line['step']][-1]
    assert line['index_step'] == used['checkpoint_step']
  steps = [step for step, _ in losses(workdir)]
  assert steps == list(range(1, len(steps) + 1))
  assert leases.living(workdir) == []  # deletes those of dead processes
  assert not list((workdir / 'leases').glob('*.json'))
  names = {child.name for child in workdir.iterdir()}
  assert not [name for name in names if name.endswith('.tmp')]
  left = [
    child.name
    for child in (workdir / 'checkpoints').iterdir()
    if not child.name.isdigit() and child.name != 'deleted'
  ]
  assert left == []
  assert not list((workdir / 'checkpoints').glob('deleted/*'))
  assert len(checkpoints.steps(workdir)) <= 3
  return {'versions': len(numbers), 'swaps': len(swaps), 'steps': len(steps)}
