"""The verbs: flags in, one call out.

One function a verb: declares its flags, named as the arguments of the call that
they go to, and returns what makes the call. Imports wait for the call: JAX
takes seconds to import.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from realm_jax import experiment
from realm_jax.flags import (
  Parser,
  checkpoint,
  cluster,
  flag,
  need,
  need_config,
  need_inputs,
  need_workdir,
  profile,
  step,
)

_Run = Callable[..., int]


def _print_json(value: Any) -> int:
  json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
  print()
  return 0


def _print_manifest(manifest: dict[str, Any]) -> int:
  """Prints what a corpus is now; its history stays in the file."""
  return _print_json(
    {key: value for key, value in manifest.items() if key != 'generations'}
  )


def _quickstart(verb: Parser) -> _Run:
  need_workdir(verb)
  flag(verb, '--seed N', 'of world and training', type=int, default=0)
  help = 'small: a smaller world, for a test'
  flag(verb, '--size', help, choices=('full', 'small'), default='full')

  def run(**flags: Any) -> int:
    from realm_jax.jobs import quickstart

    return quickstart.quickstart(**flags)

  return run


def _prepare(verb: Parser) -> _Run:
  need_inputs(verb)
  vocab = verb.add_mutually_exclusive_group(required=True)
  flag(vocab, '--vocab FILE', 'vocab.txt of a BERT model (no default)')
  help = 'or learn N wordpieces from the inputs (no default)'
  flag(vocab, '--train-vocab N', help, type=int)
  need(verb, '--output DIR', 'the corpus store to make')
  help = 'wordpieces in a block at most'
  flag(verb, '--block-length N', help, type=int, default=288)
  flag(verb, '--workers N', 'processes', type=int, default=1)

  def run(**flags: Any) -> int:
    from realm_jax.corpus import prepare

    return _print_manifest(prepare.prepare(**flags))

  return run


def _config(verb: Parser) -> _Run:
  need_config(verb)
  flag(verb, '--print', 'print the resolved keys as JSON', action='store_true')

  def run(config: str, overrides: dict[str, str], print: bool) -> int:
    values = experiment.load(config, overrides).to_dict()
    return _print_json(values) if print else 0

  return run


def _stage(verb: Parser) -> _Run:
  need_config(verb)
  need_workdir(verb)
  profile(verb)
  cluster(verb)
  stage = verb.prog.split()[-1]

  def run(
    config: str,
    overrides: dict[str, str],
    workdir: str,
    profile: tuple[int, ...],
  ) -> int:
    loaded = experiment.load(config, overrides)  # fails before JAX starts
    from realm_jax.train import run

    return run.train(stage, loaded, workdir, profile)

  return run


def _refresh(verb: Parser) -> _Run:
  need_workdir(verb, dest='path')
  mode = verb.add_mutually_exclusive_group()
  help = 'index one checkpoint, the newest or best, and exit (the default)'
  follow = {'dest': 'follow', 'default': False}
  flag(mode, '--once', help, action='store_false', **follow)
  help = 'index each new checkpoint until the run has ended'
  flag(mode, '--follow', help, action='store_true', **follow)
  cluster(verb)

  def run(**flags: Any) -> int:
    from realm_jax.index import refresh

    return refresh.refresh(**flags)

  return run


def _index(verb: Parser) -> _Run:
  need_workdir(verb)
  flag(verb, '--report', 'print the whole manifests', action='store_true')

  def run(**flags: Any) -> int:
    from realm_jax.jobs import index

    return _print_json(index.list_index(**flags))

  return run


def _corpus(verb: Parser) -> None:
  changes = verb.add_subparsers(
    required=True, metavar='add|remove', title='changes'
  )
  help = 'appends documents'
  add = changes.add_parser('add', help=help, description=help)
  help = 'removes documents; row numbers stay'
  remove = changes.add_parser('remove', help=help, description=help)
  for change in (add, remove):
    need(change, '--corpus DIR', 'the corpus store', dest='path')
  need_inputs(add)
  help = 'ids of the documents'
  more = {'nargs': '+', 'action': 'extend', 'dest': 'document_ids'}
  need(remove, '--document ID', help, **more)

  def run_add(**flags: Any) -> int:
    from realm_jax.corpus import change

    return _print_manifest(change.add(**flags))

  def run_remove(**flags: Any) -> int:
    from realm_jax.corpus import change

    return _print_manifest(change.remove(**flags))

  add.set_defaults(run=run_add)
  remove.set_defaults(run=run_remove)


def _evaluate(verb: Parser) -> _Run:
  need_workdir(verb)
  need(verb, '--questions FILE', 'questions with answers')
  help = 'for metrics.json, predictions.jsonl and report.html'
  need(verb, '--output DIR', help)
  checkpoint(verb)
  help = 'each checkpoint whose index is there, until the run has ended: into '
  help += 'DIR/STEP, the newest into DIR too'
  flag(verb, '--follow', help, action='store_true')
  cluster(verb)

  def run(follow: bool, **flags: Any) -> int:
    if not follow:
      from realm_jax.evaluate import evaluate

      return _print_json(evaluate.evaluate(**flags))
    for name in ('step', 'index_version'):
      if flags.pop(name) is not None:
        raise ValueError(f'--{name}: not with --follow, which takes each')
    from realm_jax.evaluate import follow as follow_lib

    return follow_lib.follow(**flags)

  return run


def _search(verb: Parser) -> _Run:
  need_workdir(verb)
  need(verb, '--query TEXT', 'what to look for')
  flag(verb, '--k K', 'how many passages', type=int, default=5)
  checkpoint(verb)

  def run(**flags: Any) -> int:
    from realm_jax.evaluate import ask

    return _print_json(ask.search(**flags))

  return run


def _ask(verb: Parser) -> _Run:
  need_workdir(verb)
  verb.add_argument('question', metavar='QUESTION')
  checkpoint(verb)

  def run(**flags: Any) -> int:
    from realm_jax.evaluate import ask

    return _print_json(ask.ask(**flags))

  return run


def _plan(verb: Parser) -> _Run:
  need_config(verb)
  need(verb, '--topology T', 'v4:4x4x4, v5e:16x16:2 (two slices), gpu:h100:8')
  help = 'of the refresh job (default: a quarter of the chips)'
  flag(verb, '--refresh-topology T', help)
  help = 'of Z (default: what the store has, or the 13,353,718 of the paper)'
  flag(verb, '--blocks N', help, type=int)
  help = 'wordpieces (default: what the store has, or 288)'
  flag(verb, '--block-length N', help, type=int)
  help = 'share of the peak FLOP/s that is taken to be reached'
  flag(verb, '--efficiency X', help, type=float, default=0.4)
  help = 'compile the step for the TPUs, for the figures of the compiler'
  flag(verb, '--compile', help, action='store_true')

  def run(config: str, overrides: dict[str, str], **flags: Any) -> int:
    loaded = experiment.load(config, overrides)
    from realm_jax.jobs import plan

    return _print_json(plan.plan(loaded, **flags))

  return run


def _embed(verb: Parser) -> _Run:
  need_workdir(verb)
  need(verb, '--input FILE', 'JSON lines {"title"?, "text"}')
  need(verb, '--output FILE.npy', '[n, E] float32')
  more = {'choices': ('query', 'document'), 'default': 'document'}
  flag(verb, '--as', 'which embedder', dest='side', **more)
  cluster(verb)

  def run(**flags: Any) -> int:
    from realm_jax.jobs import embed

    embed.embed(**flags)
    return 0

  return run


def _import(verb: Parser) -> _Run:
  need(verb, '--from DIR', 'config.json and weights', dest='source')
  need(verb, '--output DIR', 'the workdir to make')
  help = 'store whose rows are the blocks of the index (default: its records)'
  flag(verb, '--corpus DIR', help)
  help = 'wordpieces in a block at most, where block_records.npy has the text'
  flag(verb, '--block-length N', help, type=int, default=288)
  help = 'inputs and outputs of the reference to compare with (no default)'
  flag(verb, '--verify FILE.npz', help, dest='expected')

  def run(**flags: Any) -> int:
    from realm_jax.jobs import import_weights

    told, passed = import_weights.import_weights(**flags)
    _print_json(told)
    if not passed:
      print(
        'error: --verify: an output differs from the reference by more than '
        f'{import_weights.TOLERANCE}',
        file=sys.stderr,
      )
    return 0 if passed else 1

  return run


def _export(verb: Parser) -> _Run:
  need_workdir(verb)
  need(verb, '--to DIR', 'the directory to make')
  step(verb)
  kinds = ('bert', 'embedder', 'scorer', 'encoder', 'reader', 'open_qa')
  help = 'class to write (default: what the stage is)'
  flag(verb, '--as', help, dest='kind', choices=kinds)

  def run(**flags: Any) -> int:
    from realm_jax.jobs import export_weights

    return _print_json(export_weights.export_weights(**flags))

  return run


# Name to help and declaring function.
VERBS: dict[str, tuple[str, Callable[[Parser], _Run | None]]] = {
  'quickstart': ('the whole pipeline on a toy world', _quickstart),
  'prepare': ('documents to a corpus store', _prepare),
  'config': ('checks an experiment file', _config),
  'mlm': ('masked language modelling, a warm start', _stage),
  'ict': ('inverse cloze task, a warm start', _stage),
  'pretrain': ('pre-training with retrieval', _stage),
  'finetune': ('fine-tuning on questions', _stage),
  'refresh': ('builds index versions of a run', _refresh),
  'index': ('lists the index versions of a run', _index),
  'corpus': ('changes a corpus store', _corpus),
  'evaluate': ('scores a checkpoint on questions', _evaluate),
  'search': ('passages for a query', _search),
  'ask': ('an answer with its evidence', _ask),
  'plan': ('of pre-training: will it fit, how stale is the index', _plan),
  'embed': ('JSON lines to vectors', _embed),
  'import': ('weights of Hugging Face to a workdir', _import),
  'export': ('a checkpoint to the layout of Hugging Face', _export),
}
