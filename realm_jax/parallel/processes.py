"""Several processes as one run: how they start, agree, and end together.

The engine is JAX's own runtime. What processes tell each other here goes
through its coordination service, not through the devices: nothing waits for a
step that is running. All of a run's processes make the same calls in the same
order. A run of one process makes them too, and they do nothing.

A process that fails, hangs or dies is named in the one line that the others end
with. Process 0 is the exception: it holds the service, and when it is killed
JAX aborts the others within a second (status 134), with a stack trace below
"Terminating process because the JAX distributed service detected fatal errors".
`jax.distributed.initialize` takes no callback for that.
"""

import json
import os
import sys
import threading
import time
from typing import Any, ClassVar, NamedTuple, NoReturn

import jax
import orbax.checkpoint as ocp

# A coordinator that does not answer, and processes that do not come.
_START_SECONDS = 50
# Without a sign of life: for a process that was killed or stopped.
_HEARTBEAT_SECONDS = 60
_LINGER_SECONDS = 5  # that others may read why the coordinator's host ends
_WATCH_SECONDS = 0.5
_POLL_SECONDS = 0.01
SIGTERM_STATUS = 75  # of a process that SIGTERM stopped, after saving
_TRY_MS = 1000


class Cluster(NamedTuple):
  """The processes of a run, as its command line tells them.

  Attributes:
    distributed: ask the environment (TPU pod, GKE, Slurm, Open MPI).
    coordinator: or `HOST:PORT` of process 0,
    num_processes: how many there are,
    process_id: and which this is, from 0.
    hang_seconds: a run in which nothing was done for so long is ended.
  """

  distributed: bool = False
  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  hang_seconds: float = 900.0


class _This:
  """What this process knows of the run."""

  client: Any = None  # of the coordination service; None: alone
  calls = 0  # made together so far
  told: ClassVar[list[str]] = []  # by from_first, maybe not read by all yet
  beats = 0
  doing = 'starting'
  watch: threading.Thread | None = None
  leaving = threading.Event()


def start(cluster: Cluster) -> None:
  """Joins the run; for one process nothing is done.

  Args:
    cluster: the run's processes.

  Raises:
    ValueError: flags that do not fit, or no cluster in the environment.
    ConnectionError: no coordinator or not all processes within a minute.
  """
  if not _asked_for(cluster):
    return
  named = {
    'coordinator_address': cluster.coordinator,
    'num_processes': cluster.num_processes,
    'process_id': cluster.process_id,
    # Else JAX asks Slurm too, and takes one of the node's devices only.
    'cluster_detection_method': 'deactivate',
  }
  where = cluster.coordinator or 'the cluster of --distributed'
  # JAX's own end of a wait that is too long is a crash with a stack trace.
  patience = threading.Timer(_START_SECONDS, _give_up, (where,))
  patience.start()
  try:
    jax.distributed.initialize(
      **({} if cluster.distributed else named),
      initialization_timeout=2 * _START_SECONDS,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error
  except RuntimeError as error:
    raise ConnectionError(f'{where}: {error}') from error
  finally:
    patience.cancel()
  if jax.process_count() > 1:
    _This.client = ocp.multihost.get_jax_distributed_client()
    _This.watch = threading.Thread(
      target=_watch, args=(cluster.hang_seconds,), daemon=True
    )
    _This.watch.start()


def alone() -> bool:
  """Whether the run is this one process."""
  return _This.client is None


def is_first() -> bool:
  """Whether this process writes what a run writes once."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints a line on standard error, once a run."""
  if is_first():
    print(text, file=sys.stderr, flush=True)


def beat(doing: str) -> None:
  """Says that this process gets on.

  Args:
    doing: what comes now, for the message if it never ends.
  """
  _This.doing = doing
  _This.beats += 1


def barrier() -> None:
  """Waits until all processes are here."""
  gather(None)


def from_first(value: Any) -> Any:
  """Gives all processes what the first one has.

  Args:
    value: JSON; of the other processes it does not matter.

  Returns:
    That of process 0.
  """
  if alone():
    return value
  key = _call('first')
  if is_first():
    tell(key, value)
    _This.told.append(key)
    return value
  return wait_for(key)


def gather(value: Any) -> list[Any]:
  """Gives all processes what each one has.

  Args:
    value: JSON, small: all of them go to all.

  Returns:
    The values in order of process.
  """
  if alone():
    return [value]
  key = _call('gather')
  tell(f'{key}/{jax.process_index()}', value)
  found: list[Any] = []
  if is_first():
    while len(found) < jax.process_count():
      time.sleep(_POLL_SECONDS)
      found = told_by_all(f'{key}/')
    # Who came here has read what was told before; the service keeps all that
    # is not deleted, for as long as the run.
    for old in (key, *_This.told):
      forget(old)
    _This.told.clear()
  return from_first(found)


def any_problem(problem: str | None) -> str | None:
  """What kept this process, or else another one, from its part; or None."""
  return next(filter(None, gather(problem)), None)


def tell(key: str, value: Any) -> None:
  """Writes a JSON value where the other processes can read it; see `ask`."""
  if _This.client is not None:
    _This.client.key_value_set(
      f'realm/{key}', json.dumps(value), allow_overwrite=True
    )


def ask(key: str) -> Any:
  """The value that was told under a key, or None."""
  try:
    return json.loads(_This.client.key_value_try_get(f'realm/{key}'))
  except jax.errors.JaxRuntimeError as error:
    if 'NOT_FOUND' not in str(error):
      raise
    return None


def wait_for(key: str) -> Any:
  """The value under a key, as soon as it is told."""
  while True:
    try:
      return json.loads(
        _This.client.blocking_key_value_get(f'realm/{key}', _TRY_MS)
      )
    except jax.errors.JaxRuntimeError as error:
      # Between two tries Python's signal handlers run.
      if 'DEADLINE_EXCEEDED' not in str(error):
        raise


def told_by_all(prefix: str) -> list[Any]:
  """The values under `<prefix><process>`; fewer until all have told."""
  found = _This.client.key_value_dir_get(f'realm/{prefix}')
  told = {int(key.rpartition('/')[2]): json.loads(text) for key, text in found}
  return [told[process] for process in sorted(told)]


def forget(key: str) -> None:
  """Deletes what was told under a key, and below it."""
  _This.client.key_value_delete(f'realm/{key}')


def agree(values: dict[str, Any]) -> None:
  """Checks that all processes have the same.

  Args:
    values: names, as messages give them, to JSON.

  Raises:
    ValueError: a process has another value; names both.
  """
  everyone = gather(values)
  for process, found in enumerate(everyone):
    for name, value in found.items():
      if value != everyone[0].get(name):
        raise ValueError(
          f'{name}: process {process} has {value!r}, process 0 has '
          f'{everyone[0].get(name)!r}'
        )


def explain(why: str) -> str:
  """Adds to the reason of a failure which processes are gone."""
  if alone():
    return why
  gone = _silent()
  if not gone:
    return why
  return f'process {" and ".join(map(str, gone))} is gone: {why}'


def end(status: int, why: str) -> None:
  """Ends this process's part of the run; does not return if it failed.

  Args:
    status: the exit status. 0: waits for the others. Else they end too.
    why: one line, for the others to print.
  """
  if alone():
    return
  if not status:
    barrier()  # while the others can still be told why one fails
    _This.leaving.set()
    if _This.watch:
      _This.watch.join()  # it must not ask a service that is gone
    jax.distributed.shutdown()
    return
  tell(f'failed/{jax.process_index()}', [status, why])
  _exit(status)


def _exit(status: int) -> NoReturn:
  """Ends at once: an orderly exit would wait for processes that hang."""
  sys.stdout.flush()
  sys.stderr.flush()
  if is_first():
    time.sleep(_LINGER_SECONDS)  # the service that the others ask ends with it
  os._exit(status)


def _asked_for(cluster: Cluster) -> bool:
  named = {
    '--coordinator': cluster.coordinator,
    '--num-processes': cluster.num_processes,
    '--process-id': cluster.process_id,
  }
  given = [name for name, value in named.items() if value is not None]
  if cluster.distributed and given:
    raise ValueError(f'{given[0]}: not with --distributed, which finds it')
  if given and len(given) < len(named):
    missing = next(name for name in named if name not in given)
    raise ValueError(f'{missing}: is needed with {given[0]}')
  if cluster.hang_seconds <= 0:
    raise ValueError(
      f'--hang-seconds: {cluster.hang_seconds}, must be positive'
    )
  if given and not cluster.distributed:
    count, place = cluster.num_processes, cluster.process_id
    assert count is not None and place is not None
    if count < 1 or not 0 <= place < count:
      raise ValueError(
        f'--process-id: {place}, must be from 0 to --num-processes {count} - 1'
      )
  return cluster.distributed or bool(given)


def _call(kind: str) -> str:
  """A name for a call that all processes make, the same in all of them."""
  _This.calls += 1
  return f'{kind}/{_This.calls}'


def _watch(hang_seconds: float) -> None:
  """Ends this process when another one failed, or the run hangs."""
  try:
    _watch_others(hang_seconds)
  except jax.errors.JaxRuntimeError as error:
    print(f'error: process 0 is gone: {error}', file=sys.stderr)
    _exit(1)


def _watch_others(hang_seconds: float) -> None:
  told, tick = -1, 0
  seen: list[Any] = []
  changed = time.monotonic()
  while not _This.leaving.wait(_WATCH_SECONDS):
    tick += 1
    tell(f'alive/{jax.process_index()}', tick)
    for key, text in _This.client.key_value_dir_get('realm/failed/'):
      status, why = json.loads(text)
      if key.endswith(f'/{jax.process_index()}'):
        continue  # this one, which is about to end
      error = f'error: process {key.rpartition("/")[2]}: {why}'
      print(error if status != SIGTERM_STATUS else why, file=sys.stderr)
      _exit(status)
    if told != _This.beats:
      told = _This.beats
      tell(f'beats/{jax.process_index()}', [told, _This.doing])
    if not is_first():
      continue
    beats = told_by_all('beats/')
    if beats != seen:
      seen, changed = beats, time.monotonic()
    elif time.monotonic() - changed > hang_seconds:
      why = f'{_who_hangs(beats, _silent())} for {hang_seconds:g} s'
      print(f'error: {why}', file=sys.stderr)
      tell(f'failed/{jax.process_index()}', [1, why])
      _exit(1)


def _give_up(where: str) -> None:
  print(
    f'error: {where}: not all processes were there after {_START_SECONDS} s; '
    'is the coordinator (process 0) running, and can it be reached?',
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


def _silent() -> list[int]:
  """The other processes that show no sign of life: stopped or killed."""
  before = dict(enumerate(told_by_all('alive/')))
  time.sleep(6 * _WATCH_SECONDS)
  return [
    place
    for place, tick in enumerate(told_by_all('alive/'))
    if tick == before.get(place) and place != jax.process_index()
  ]


def _who_hangs(beats: list[Any], silent: list[int]) -> str:
  """Names who the others wait for: the silent, else those that did least."""
  least = min(count for count, _ in beats)
  behind = silent or [
    place for place, (count, _) in enumerate(beats) if count == least
  ]
  doing = beats[behind[0]][1]
  if len(behind) == len(beats):
    return f'no process goes on from "{doing}"'
  places = ' and '.join(map(str, behind))
  return f'the others wait for process {places}, which hangs at "{doing}"'
