r"""Pre-training on few real passages: the base of `refresh_ablation.py`.

  . launch/env.sh cpu
  python experiments/wiki_tiny.py --data ../shared/data \
    --bert runs/wiki_full/checkpoint/reading

Corpus: the 4,497 passages of squad, X and Z both. Training questions:
squad_train, those with an answer in the corpus. Test: the SQuAD dev questions,
whose passages are in the corpus too.

It starts from what wiki_full.py's MLM made of a 6-layer BERT on all passages:
200 steps of MLM on these few alone taught too little (0.3 of the masks filled),
and 70 steps of copying after them nothing (retrieval utility near 0).

The reader is taught to copy first; then the retriever learns at 0.3 of the
reader's rate, three times that of wiki_small.py, so that an index of some steps
ago is not that of now.

SQuAD dev, percent: recall@1, @5, @20 of BM25 77.7, 92.6, 97.2 (its questions
were written over the passages), off the shelf 64.9, 87.2, 95.1, after
pre-training 65.5, 87.9, 95.6 (at the reader's own rate 64.2, 86.4, 94.8). After
150 steps of copying a passage makes the masked words about 10 nats likelier
than none (1.8 at step 10), also where MLM was stopped at step 781 of 1,500
(0.38 of the masks filled). In pre-training proper it hardly does (-0.9 to 0.7):
for one sentence in four does any of the three blocks found hold the masked
words. What 60 steps of pre-training do, by how fresh the index is, and
fine-tuning, says refresh_ablation.py.

Hardware: 2 CPU cores (AMD EPYC, AVX-512), 24 GB; copying takes 12 minutes,
pre-training with its four versions 10.
"""

from typing import Any

import ml_collections
import wiki_full
import wiki_small
from pipeline.wiki import Inputs, Pipeline, Stage, parser

INPUTS = Inputs(
  corpora=('corpus_squad.jsonl.gz',),
  train=('qa_squad_train.jsonl.gz',),
  tests={'SQuAD dev': 'qa_squad_dev.jsonl.gz'},
)
STAGES = {
  'off_the_shelf': wiki_full.STAGES['checkpoint']['off_the_shelf'],
  'pretrain': Stage(
    'pretrain', {'init_from': 'off_the_shelf'}, 'after pre-training'
  ),
  'finetune': wiki_full.STAGES['checkpoint']['finetune'],
}

_KEYS: dict[str, dict[str, Any]] = {
  'pretrain': {
    'num_steps': 60,
    'batch_size': 8,
    'freeze_retriever_steps': 0,
    'log_every': 5,
    'checkpoint_every': 15,
    'refresh': {'where': 'in_process', 'every': 15},
    'optimizer': {'warmup_steps': 5},
  },
}


def get_config(stage: str = 'pretrain') -> ml_collections.ConfigDict:
  if stage not in STAGES:
    raise ValueError(f'wiki_tiny.py:{stage}: choose from {", ".join(STAGES)}')
  config = wiki_full.get_config(f'checkpoint_{stage}')
  with config.unlocked():
    config.update(_KEYS.get(stage, {}))
  return config


def main() -> None:
  flags = parser('REALM on few real passages', 'runs/wiki_tiny').parse_args()
  if not flags.bert:
    raise SystemExit('error: --bert is needed')
  Pipeline(flags, __file__, STAGES, INPUTS, wiki_small.BLOCK_LENGTH).run()


if __name__ == '__main__':
  main()
