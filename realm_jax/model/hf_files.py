"""Files of weights in the Hugging Face layout, read a tensor at a time."""

import contextlib
import functools
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
from etils import epath

from realm_jax.model import hf_names

CONFIG = 'config.json'
SAFETENSORS = 'model.safetensors'
_PICKLED = 'pytorch_model.bin'
_NEEDS_TORCH = 'pip install realm-jax[torch]; or convert it to safetensors'
_NEEDS_TENSORFLOW = (
  'pip install tensorflow-cpu, in an environment of its own (scann cannot be '
  'imported beside it)'
)
_FLOATS = ('float32', 'float16', 'bfloat16')


class Entry(NamedTuple):
  """A tensor of a file that has not been read."""

  shape: tuple[int, ...]
  dtype: str  # as numpy names it
  read: Callable[[slice], np.ndarray]  # rows of it, or all of a scalar


class Weights:
  """The tensors of a directory, by Hugging Face key.

  Nothing is read before it is asked for. The layer norms' older names (gamma,
  beta) are made the newer (weight, bias).

  Attributes:
    path: the directory.
    config: its config.json.
    entries: what is in the files.
  """

  def __init__(
    self, path: str, config: dict[str, Any], entries: Mapping[str, Entry]
  ):
    self.path = path
    self.config = config
    self.entries = {_modern(key): entry for key, entry in entries.items()}

  def floats(self, key: str) -> np.ndarray:
    """A tensor as float32.

    Raises:
      ValueError: its numbers are not floating point of at most 32 bits.
    """
    (whole,) = self.rows(key, None)
    return whole

  def rows(self, key: str, count: int | None) -> Iterator[np.ndarray]:
    """A tensor as float32, `count` rows at a time; None: all of it."""
    entry = self.entries[key]
    if entry.dtype not in _FLOATS:
      raise ValueError(
        f'{self.path}: {key}: {entry.dtype}, must be one of '
        f'{", ".join(_FLOATS)}'
      )
    size = entry.shape[0] if entry.shape else 1
    for start in range(0, size, count or size or 1):
      part = slice(start, min(start + (count or size), size))
      # In C order: safetensors writes a transposed array as it lies in memory.
      yield np.asarray(entry.read(part), np.float32, order='C')


@contextlib.contextmanager
def open_weights(path: str) -> Iterator[Weights]:
  """Opens `config.json` and the weights beside it.

  They are model.safetensors, pytorch_model.bin (loaded with weights-only
  unpickling, by torch), either of them in shards with an index, or a TensorFlow
  checkpoint (read by tensorflow).

  Args:
    path: the directory.

  Yields:
    The Weights, to be read while the files are open.

  Raises:
    ValueError: a file is missing, is not what its name says, or needs a
      library that is not installed.
  """
  config = _read_object(os.path.join(path, CONFIG))
  with contextlib.ExitStack() as stack:
    yield Weights(path, config, _entries(path, config, stack))


def _entries(
  path: str, config: dict[str, Any], stack: contextlib.ExitStack
) -> dict[str, Entry]:
  for name, read in ((SAFETENSORS, _safetensors), (_PICKLED, _pickled)):
    file = os.path.join(path, name)
    if os.path.isfile(file):
      return read(file, stack)
    if os.path.isfile(f'{file}.index.json'):
      return _shards(path, f'{file}.index.json', read, stack)
  names = os.listdir(path)
  checkpoints = sorted(n for n in names if n.endswith('.index'))
  if checkpoints:
    if len(checkpoints) > 1:
      raise ValueError(
        f'{path}: several TensorFlow checkpoints: {", ".join(checkpoints)}; '
        'leave the one that is meant'
      )
    prefix = checkpoints[0].removesuffix('.index')
    realm = config.get('model_type') == 'realm'
    return _tensorflow(os.path.join(path, prefix), realm)
  raise ValueError(
    f'{path}: no weights; expected {SAFETENSORS} or {_PICKLED} (or their '
    'shards with an index), or a TensorFlow checkpoint'
  )


def _read_object(path: str) -> dict[str, Any]:
  if not os.path.isfile(path):
    raise ValueError(
      f'{path}: no such file; a Hugging Face directory has config.json and '
      f'{SAFETENSORS}'
    )
  try:
    with open(path, encoding='utf-8') as file:
      value = json.load(file)
  except ValueError as error:
    raise ValueError(f'{path}: not JSON: {error}') from error
  if not isinstance(value, dict):
    raise ValueError(f'{path}: expected a JSON object')
  return value


def _shards(
  path: str,
  index: str,
  read: Callable[[str, contextlib.ExitStack], dict[str, Entry]],
  stack: contextlib.ExitStack,
) -> dict[str, Entry]:
  places = _read_object(index).get('weight_map')
  if not isinstance(places, dict):
    raise ValueError(f'{index}: weight_map: expected an object')
  found: dict[str, Entry] = {}
  for name in sorted(set(places.values())):
    file = os.path.join(path, os.path.basename(name))
    if not os.path.isfile(file):
      raise ValueError(f'{file}: no such file, but {index} names it')
    found |= read(file, stack)
  if missing := sorted(set(places) - set(found)):
    raise ValueError(f'{index}: no shard has {", ".join(missing)}')
  return found


_DTYPES = {'F': 'float', 'BF': 'bfloat', 'I': 'int', 'U': 'uint'}


def _safetensors(path: str, stack: contextlib.ExitStack) -> dict[str, Entry]:
  try:
    file = stack.enter_context(safetensors.safe_open(path, framework='numpy'))
    found = {}
    for key in file.keys():  # noqa: SIM118 (the file is no mapping)
      part = file.get_slice(key)
      dtype = part.get_dtype()
      found[key] = Entry(
        tuple(part.get_shape()),
        _DTYPES.get(dtype.rstrip('0123456789'), dtype)
        + dtype.lstrip('ABCDEFGHIJKLMNOPQRSTUVWXYZ'),
        lambda rows, key=key, part=part: (
          part[rows] if part.get_shape() else file.get_tensor(key)
        ),
      )
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(f'{path}: not safetensors: {error}') from error
  return found


def _pickled(path: str, stack: contextlib.ExitStack) -> dict[str, Entry]:
  try:
    import torch
  except ImportError as error:
    raise ValueError(f'{path}: needs torch to be read: {_NEEDS_TORCH}') from (
      error
    )
  import pickle

  load = {'map_location': 'cpu', 'weights_only': True}
  try:
    try:
      state = torch.load(path, mmap=True, **load)
    except RuntimeError:  # the older form, which is no zip file
      state = torch.load(path, **load)
  except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
    first = str(error).split('\n')[0]
    raise ValueError(f'{path}: not weights of PyTorch: {first}') from error
  if not isinstance(state, dict):
    raise ValueError(f'{path}: expected a dictionary of tensors')

  def entry(tensor: Any) -> Entry:
    dtype = str(tensor.dtype).removeprefix('torch.')

    def read(rows: slice) -> np.ndarray:
      part = tensor[rows] if tensor.ndim else tensor
      return part.float().numpy() if part.is_floating_point() else part.numpy()

    return Entry(tuple(tensor.shape), dtype, read)

  return {key: entry(tensor) for key, tensor in state.items()}


def _tensorflow(prefix: str, realm: bool) -> dict[str, Entry]:
  try:
    import tensorflow
  except ImportError as error:
    raise ValueError(
      f'{prefix}: needs tensorflow to be read: {_NEEDS_TENSORFLOW}'
    ) from error
  try:
    reader = tensorflow.train.load_checkpoint(prefix)
  except tensorflow.errors.OpError as error:
    raise ValueError(f'{prefix}: not a checkpoint: {error.message}') from error
  shapes = reader.get_variable_to_shape_map()
  dtypes = reader.get_variable_to_dtype_map()
  # A part of a tensor cannot be read: the last one stays for its next part.
  get_tensor = functools.lru_cache(1)(reader.get_tensor)
  found = {}
  for name, key, transposed in hf_names.from_tensorflow(sorted(shapes), realm):
    shape = tuple(shapes[name])

    def read(
      rows: slice, name: str = name, transposed: bool = transposed
    ) -> np.ndarray:
      array = get_tensor(name)
      array = array.T if transposed else array
      return array[rows] if array.ndim else array

    found[key] = Entry(
      shape[::-1] if transposed else shape, dtypes[name].name, read
    )
  # Its heads have no table of their own: they share that of the words.
  for key in list(found):
    before, head, _ = key.partition('cls.predictions.bias')
    word = f'{before}realm.{hf_names.WORD}'
    if head and word in found:
      found.setdefault(before + hf_names.DECODER, found[word])
  return found


def _modern(key: str) -> str:
  for old, new in (('.gamma', '.weight'), ('.beta', '.bias')):
    if key.endswith(f'LayerNorm{old}'):
      return key.removesuffix(old) + new
  return key


def write_safetensors(
  path: epath.PathLike, tensors: Iterable[tuple[str, tuple[int, ...], Any]]
) -> None:
  """Writes a safetensors file whose arrays need not be in memory.

  The library's writer takes whole arrays; the rows of an index are gigabytes.
  The format is eight bytes of length, a header in JSON, and the arrays' bytes.

  Args:
    path: the file; it appears whole or not at all.
    tensors: key, shape, and a function that yields float32 arrays, the parts
      of the tensor along its first axis.
  """
  tensors = list(tensors)
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for key, shape, _ in tensors:
    start, end = end, end + 4 * int(np.prod(shape, dtype=np.int64))
    header[key] = {
      'dtype': 'F32',
      'shape': list(shape),
      'data_offsets': [start, end],
    }
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  path = epath.Path(path)
  temporary = path.parent / f'.{path.name}.tmp'
  try:
    with temporary.open('wb') as file:
      file.write(struct.pack('<Q', len(text)))
      file.write(text)
      for key, shape, parts in tensors:
        rows = 0
        for part in parts():
          rows += part.shape[0] if shape else 1
          file.write(np.ascontiguousarray(part, np.dtype('<f4')).tobytes())
        if rows != (shape[0] if shape else 1):
          raise ValueError(f'{path}: {key}: {rows} rows, expected {shape}')
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
