"""What a compiled program sends between devices, read from its text.

XLA's cost analysis neither counts collectives nor repeats the body of a loop.
Here a collective in a loop counts as often as the loop turns.
"""

import math
import re
from collections import Counter

_BYTES = {
  **{'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2},
  **{'s32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8},
}
_HEAD = re.compile(r'^(?:ENTRY )?(%?[\w.-]+) \(.*\{$')
_SHAPE = re.compile(r'\b([a-z]+[0-9]*)\[([0-9,]*)\]')
_COLLECTIVE = re.compile(
  r'= (?P<out>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|'
  r'collective-permute)(?P<start>-start)?\('
)
_SEND = re.compile(
  r'= \((?P<out>\w+\[[0-9,]*\]).* send\(.*is_host_transfer=true'
)
_CALLED = re.compile(
  r'(?:body|to_apply|calls|branch_computations|called_computations)='
  r'\{?([%\w.,\s-]+)\}?'
)
_WHILE = re.compile(r' while\(.*condition=(%?[\w.-]+), body=(%?[\w.-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r'(%[\w.-]+) = [su]\d+\S* constant\((\d+)\)')
_ELEMENT = re.compile(r' get-tuple-element\(.*\), index=(\d+)')
_OPERANDS = re.compile(r' [\w-]+\(([^)]*)\)')


def bytes_sent(text: str) -> dict[str, int]:
  """Bytes that a device sends in one run, by kind of collective.

  A ring of n devices sends (n - 1) / n of the result of an all-gather, of the
  operand of a reduce-scatter or an all-to-all, and twice that of an
  all-reduce; a permute sends its operand. Shapes count without padding. What
  the hosts send to other slices of TPUs is `send`.

  Args:
    text: of a compiled program, `compiled.as_text()`.

  Returns:
    Kind to bytes; no entry for a kind that does not occur.

  Raises:
    ValueError: a loop whose number of turns the text does not show.
  """
  bodies = _computations(text)
  entry = next(name for name, lines in bodies.items() if lines[0] == 'ENTRY')
  found: dict[str, tuple[str, int]] = {}
  _find(entry, 1, bodies, found)
  total: Counter[str] = Counter()
  for kind, sent in found.values():
    total[kind] += sent
  return dict(total)


def _computations(text: str) -> dict[str, list[str]]:
  """Name to lines; the first line says whether it is the entry."""
  found: dict[str, list[str]] = {}
  name = None
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      name = head[1]
      found[name] = ['ENTRY' if line.startswith('ENTRY') else '']
    elif line.startswith('}'):
      name = None
    elif name is not None:
      found[name].append(line)
  return found


def _find(
  name: str,
  times: int,
  bodies: dict[str, list[str]],
  found: dict[str, tuple[str, int]],
) -> None:
  """Finds the collectives of a computation and of all that it calls.

  One that goes on beside other work stands in each of these too, with one
  channel; it is sent as often as the rarest of them runs.
  """
  for number, line in enumerate(bodies[name]):
    match = _COLLECTIVE.search(line)
    if match:
      channel = re.search(r'channel_id=\d+', line)
      key = channel[0] if channel else f'{name} {number}'
      sent = times * _sent(line, match)
      found[key] = min((match['kind'], sent), found.get(key, ('~', 0)))
    sent_out = _SEND.search(line)
    if sent_out:
      found[f'{name} {number}'] = ('send', times * _bytes(sent_out['out']))
    loop = _WHILE.search(line)
    if loop:
      turns = _turns(line, bodies[loop[1]], bodies[loop[2]])
      _find(loop[2], times * turns, bodies, found)
    elif not match:
      for called in _CALLED.findall(line):
        for callee in re.split(r'[,\s]+', called.strip()):
          if callee in bodies:
            _find(callee, times, bodies, found)


def _sent(line: str, match: re.Match[str]) -> int:
  kind = match['kind']
  out = _bytes(match['out'])
  if match['start'] and kind in ('all-gather', 'collective-permute'):
    # `(operand, result, ...)`: the larger is the result of a gather.
    sizes = [_bytes(shape) for shape in _shapes(match['out'])]
    out = max(sizes)
  group = _group_size(line)
  if kind == 'collective-permute':
    return out
  if kind == 'reduce-scatter':
    return out * (group - 1)
  share = out * (group - 1) // group
  return 2 * share if kind == 'all-reduce' else share


def _group_size(line: str) -> int:
  """Devices that take part, of any form that XLA writes them in."""
  mesh = re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}', line
  )
  if mesh:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    return math.prod(
      int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2])
    )
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]<=', line)
  if iota:
    return int(iota[2])
  listed = re.search(r'replica_groups=\{\{([0-9,]*)\}', line)
  if listed:
    return len(listed[1].split(','))
  if 'collective-permute' in line:
    return 2
  raise ValueError(f'collective without groups: {line.strip()[:200]}')


def _turns(line: str, condition: list[str], body: list[str]) -> int:
  """How often a loop turns whose counter goes from 0 to a constant."""
  known = _TRIPS.search(line)
  if known:
    return int(known[1])
  limits = [*_constants(condition).values()]
  counters = [_ELEMENT.search(text) for text in condition]
  counters = [int(match[1]) for match in counters if match]
  if len(limits) != 1 or len(counters) != 1:
    raise ValueError(f'loop with an unknown number of turns: {line[:200]}')
  return math.ceil(limits[0] / _growth(counters[0], body))


def _growth(counter: int, body: list[str]) -> int:
  """By how much a turn raises a counter: by more than 1 where XLA unrolls."""
  [root] = [text for text in body if text.lstrip().startswith('ROOT ')]
  name = _operands(root)[counter]
  while True:
    [added] = [text for text in body if text.lstrip().startswith(f'{name} = ')]
    if ' copy(' not in added:
      break
    [name] = _operands(added)  # from another memory
  constants = _constants(body)
  [growth] = [constants[x] for x in _operands(added) if x in constants]
  return growth


def _constants(lines: list[str]) -> dict[str, int]:
  """Integer constants of a computation, by name."""
  matches = map(_CONSTANT.search, lines)
  return {match[1]: int(match[2]) for match in matches if match}


def _operands(line: str) -> list[str]:
  match = _OPERANDS.search(re.sub(r'/\*.*?\*/', '', line))
  return [text.strip() for text in match[1].split(',')] if match else []


def _shapes(text: str) -> list[str]:
  return [match[0] for match in _SHAPE.finditer(text) if match[1] in _BYTES]


def _bytes(text: str) -> int:
  """Of all arrays in a shape or a tuple of shapes."""
  return sum(
    _BYTES[kind] * math.prod(int(n) for n in sizes.split(',') if n)
    for kind, sizes in _SHAPE.findall(text)
    if kind in _BYTES
  )
