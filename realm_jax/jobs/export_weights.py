"""A checkpoint to the Hugging Face layout."""

import functools
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from etils import epath

from realm_jax.config import Config
from realm_jax.corpus.store import Corpus
from realm_jax.evaluate.restored import chosen_step, find_version, pinned
from realm_jax.model import hf_config, hf_files, hf_names, huggingface, parts
from realm_jax.workdir import checkpoints, files, rows
from realm_jax.workdir.run import Workdir, split_init

KINDS = ('bert', *hf_names.KINDS)
_READ_ROWS = 65536
_STAGE_KINDS = {
  'mlm': ('bert',),
  'ict': ('scorer',),
  'pretrain': ('scorer', 'encoder'),
  'finetune': ('open_qa',),
}


def export_weights(
  workdir: str, to: str, step: int | None = None, kind: str | None = None
) -> dict[str, Any]:
  """Writes a checkpoint as `save_pretrained` would.

  An imported model comes back as the class it was, bit for bit. Of a stage the
  class is: mlm BertForMaskedLM; ict RealmScorer; pretrain RealmScorer and
  RealmKnowledgeAugEncoder, in the folders `scorer` and `encoder`; finetune
  RealmForOpenQA with its index and texts (BertForMaskedLM if closed-book).

  Heads that a class has and never uses are those that came with the model, or
  copies of the live ones. `score_temperature` goes into the query embedder's
  last layer norm: the classes know none. Rows of removed documents are left
  out.

  Args:
    workdir: of any stage.
    to: a directory to make.
    step: default: of a fine-tuning run the best on dev questions, else the
      newest.
    kind: another class: one of KINDS.

  Returns:
    kind to the number of tensors written.

  Raises:
    ValueError: the checkpoint has not the parts of that class.
  """
  run = Workdir.open(workdir)
  step = chosen_step(run, step)
  kinds = (kind,) if kind else _kinds(run, step)
  exporter = _Exporter(run, step)
  for one in kinds:
    exporter.check(one)
  written = {}
  with files.new_directory(to, '--to', hf_files.CONFIG):
    for one in kinds:
      folder = epath.Path(to)
      if len(kinds) > 1:
        folder = folder / one
        folder.mkdir()
      written[one] = exporter.write(one, folder)
  return written


def _kinds(run: Workdir, step: int) -> tuple[str, ...]:
  if run.stage == 'import':
    return (checkpoints.read_meta(run.path, step)['imported']['kind'],)
  if run.config.closed_book:
    return ('bert',)
  return _STAGE_KINDS[run.stage]


class _Exporter:
  """Writes a checkpoint as one class or another."""

  def __init__(self, run: Workdir, step: int):
    self._run = run
    self._step = step
    self._config: Config = run.config
    self._shapes = checkpoints.params_shapes(run.path, step)
    self._fresh: list[str] = []

  def check(self, kind: str) -> None:
    """ValueError if the checkpoint cannot be of this class."""
    wanted = (
      {'encoder'}
      if kind == 'bert'
      else {name for _, name in hf_names.KINDS[kind].parts.values()}
    )
    if kind == 'scorer':
      wanted.discard('query_embedder')  # shared
    if missing := sorted(wanted - set(self._shapes)):
      raise ValueError(
        f'{self._run.path}: step {self._step} has no {", ".join(missing)}, '
        f'which {kind} needs; has {", ".join(self._shapes)}'
      )
    if kind != 'bert' and self._config.pooling != 'cls':
      raise ValueError(
        f'{self._run.path}: pooling is {self._config.pooling!r}, but the '
        'models of REALM pool by cls'
      )

  def write(self, kind: str, folder: epath.Path) -> int:
    """Writes the files of a class; config.json last. Gives its tensors."""
    params = self._params(kind)
    found = huggingface.tensors(kind, params, self._config)
    if kind == 'bert':
      found = self._as_imported(found)
    else:
      found |= self._dead(kind)
    tensors: list[tuple[str, tuple[int, ...], Any]] = [
      (key, array.shape, functools.partial(iter, [array]))
      for key, array in sorted(found.items())
    ]
    values = hf_config.to_json(kind, self._config)
    if self._imported.get('kind') == kind:
      kept = self._run.path / 'huggingface' / hf_files.CONFIG
      values |= files.read_json(kept)
    if kind == 'open_qa':
      corpus = self._corpus()
      rows_N = self._alive(corpus)
      shape = (int(rows_N.sum()), self._config.model.retrieval_size)
      tensors.append((hf_names.BLOCKS, shape, lambda: self._rows(rows_N)))
      values['num_block_records'] = shape[0]
      if corpus is not None:
        _write_records(folder / 'block_records.npy', corpus, rows_N)
    self._write_vocab(folder)
    hf_files.write_safetensors(folder / hf_files.SAFETENSORS, tensors)
    if self._fresh:
      print(
        f'export: not in any checkpoint, random: {", ".join(self._fresh)}',
        file=sys.stderr,
      )
    files.write_json(folder / hf_files.CONFIG, values)
    return len(tensors)

  def _params(self, kind: str) -> dict[str, Any]:
    names = {'encoder'}
    if kind != 'bert':
      names = {name for _, name in hf_names.KINDS[kind].parts.values()}
    params = {
      name: _restore(self._run, self._step, name)
      for name in sorted(names & set(self._shapes))
    }
    own = 'query_embedder' in self._shapes
    temperature = self._config.score_temperature
    if temperature != 1:
      for name in ('query_embedder', 'document_embedder'):
        if name in params and (not own or name == 'query_embedder'):
          scale = temperature**-1.0 if own else temperature**-0.5
          norm = params[name]['norm']
          params[name]['norm'] = {k: x * scale for k, x in norm.items()}
    return params

  def _as_imported(self, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of BertForMaskedLM as the BERT that was imported had them.

    Only of an import itself: what was trained since is BertForMaskedLM.
    """
    if self._imported.get('kind') != 'bert':
      return found
    backbone, fresh = self._imported['backbone'], self._imported['fresh']
    if 'encoder/mlm_head' in fresh:
      found = {k: x for k, x in found.items() if k.startswith('bert.')}
    pooled = 'document_embedder/pooler' not in fresh
    if self._config.pooling == 'cls' and pooled:
      pooler = _restore(self._run, self._step, 'document_embedder')['pooler']
      found['bert.pooler.dense.weight'] = pooler['kernel'].T
      found['bert.pooler.dense.bias'] = pooler['bias']
    for name, array in self._aside.items():
      key = name.removeprefix('bert/')
      found[key if key.startswith('cls.') else f'bert.{key}'] = array
    return {
      re.sub(r'^bert\.', backbone, key): array for key, array in found.items()
    }

  @functools.cached_property
  def _imported(self) -> dict[str, Any]:
    """What `import` noted of the model; empty if this is no import."""
    return checkpoints.read_meta(self._run.path, self._step).get('imported', {})

  def _dead(self, kind: str) -> dict[str, np.ndarray]:
    """What the class has and never uses, by key."""
    found = {}
    for before, (module, name) in hf_names.KINDS[kind].parts.items():
      if name not in self._shapes:
        continue
      for key in hf_names.dead(module, self._config.model):
        found[before + key] = self._dead_tensor(name, key)
    return found

  def _dead_tensor(self, part: str, key: str) -> np.ndarray:
    for name in (part, 'document_embedder', 'query_embedder', 'reader'):
      if f'{name}/{key}' in self._aside:
        return self._aside[f'{name}/{key}']
    return self._heads[key]

  @functools.cached_property
  def _aside(self) -> dict[str, np.ndarray]:
    """What came with the imported model that this run goes back to."""
    for run in _ancestors(self._run):
      path = run.path / 'huggingface' / 'aside.safetensors'
      if path.exists():
        return safetensors.numpy.load(path.read_bytes())
    return {}

  @functools.cached_property
  def _heads(self) -> dict[str, np.ndarray]:
    """Copies of live heads, by the dead ones' keys; random if there is none."""
    found: dict[str, np.ndarray] = {}
    heads: list[tuple[parts.Part, tuple[str, ...], str]] = [
      ('encoder', ('encoder',), 'cls.predictions.'),
      ('embedder', ('query_embedder', 'document_embedder'), 'realm.pooler.'),
    ]
    for module, names, alike in heads:
      params = self._nearest(names)
      if params is None:
        self._fresh.append(alike.removesuffix('.'))
        key = jax.random.key(self._config.seed)
        params = parts.init_part(module, self._config, key)
      ((_, name),) = hf_names.KINDS[module].parts.values()
      tensors = huggingface.tensors(module, {name: params}, self._config)
      found |= {k: x for k, x in tensors.items() if k.startswith(alike)}
      if module == 'encoder':
        found[hf_names.DECODER] = tensors[f'realm.{hf_names.WORD}']
    return found

  def _nearest(self, names: tuple[str, ...]) -> Any:
    """A part out of this checkpoint or of one that the run started from."""
    step: int | None = self._step
    for run in _ancestors(self._run):
      there = checkpoints.steps(run.path)
      if step not in there:
        step = there[-1] if there else None
      if step is not None:
        shapes = checkpoints.params_shapes(run.path, step)
        for name in names:
          if name in shapes:
            return _restore(run, step, name)
      step = split_init(run.config.init_from)[1]
    return None

  def _corpus(self) -> Corpus | None:
    if not self._config.corpus:
      return None
    _, manifest = self._version
    return Corpus.open(
      self._config.corpus, manifest.corpus_fingerprint or pinned(self._run)
    )

  @functools.cached_property
  def _version(self) -> Any:
    return find_version(self._run, self._step)

  def _alive(self, corpus: Corpus | None) -> np.ndarray:
    _, manifest = self._version
    if corpus is None:
      return np.ones(manifest.rows, bool)
    newest = Corpus.open(self._config.corpus)  # removed since they were indexed
    rows = 0, corpus.num_blocks
    return corpus.alive(*rows) & newest.alive(*rows)

  def _rows(self, alive_N: np.ndarray) -> Iterator[np.ndarray]:
    index, manifest = self._version
    for start in range(0, manifest.rows, _READ_ROWS):
      stop = min(start + _READ_ROWS, manifest.rows)
      rows_nE = rows.read_rows(index, manifest.version, start, stop)
      yield rows_nE[alive_N[start:stop]].astype(np.float32)

  def _write_vocab(self, folder: epath.Path) -> None:
    for path in (
      self._run.path / 'huggingface' / 'vocab.txt',
      epath.Path(self._config.corpus or '/nowhere') / 'vocab.txt',
    ):
      if path.exists():
        (folder / 'vocab.txt').write_bytes(path.read_bytes())
        files.write_json(
          folder / 'tokenizer_config.json', {'do_lower_case': True}
        )
        return


def _ancestors(run: Workdir) -> Iterator[Workdir]:
  """A run, what it was started from, what that was started from, ..."""
  while True:
    yield run
    path = split_init(run.config.init_from)[0]
    if not path or not (epath.Path(path) / 'checkpoints').exists():
      return
    run = Workdir.open(path)


def _restore(run: Workdir, step: int, part: str) -> Any:
  """A part, as numpy."""
  shapes = checkpoints.params_shapes(run.path, step)[part]
  return checkpoints.restore_part(run.path, step, part, shapes)


def _write_records(
  path: epath.Path, corpus: Corpus, alive_N: np.ndarray
) -> None:
  """Texts of the blocks as the release's retriever loads them."""
  texts = [
    text.encode()
    for start in range(0, corpus.num_blocks, _READ_ROWS)
    for text in corpus.texts(start, min(start + _READ_ROWS, corpus.num_blocks))
  ]
  records = np.empty(len(texts), object)
  records[:] = texts
  with path.open('wb') as file:
    np.save(file, records[alive_N], allow_pickle=True)
