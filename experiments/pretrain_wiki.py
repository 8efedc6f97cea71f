"""Pre-training with X = Z = Wikipedia (paper section 4.3).

*Not run.*

  realm pretrain --config experiments/pretrain_wiki.py \
    --workdir runs/pretrain_wiki
  realm refresh --workdir runs/pretrain_wiki --follow   # machines of its own

Input: `runs/ict_wiki` and its corpus (see ict_wiki.py).
Hardware: 64 TPU v4 chips to train and 16 to refresh the index. The paper had
one refresh for about 500 steps; at that ratio of devices, with blocks of 288
wordpieces, `realm plan` estimates 2,100 (launch/plan.md).
Expected: zero-shot recall@5 of 38.5 on NQ dev. After fine-tuning, test exact
match of 39.2 on NQ, 40.2 on WQ and 46.8 on CT; 38.2 on NQ dev.
The paper does not give the warm-up; 10,000 steps are this project's choice.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      'corpus': 'runs/wiki',
      'init_from': 'runs/ict_wiki',
      'num_steps': 200_000,
      'batch_size': 512,
      'query_length': 96,
      'max_masks': 10,
      'num_candidates': 8,
      'masking': 'salient',
      'marginal': 'sequence',
      'checkpoint_every': 500,
      'optimizer': {'learning_rate': 3e-5, 'warmup_steps': 10_000},
      'model': {
        'activation': 'gelu',  # BERT's
        'compute_dtype': 'bfloat16',
        'remat': 'full',
      },
      'refresh': {'where': 'separate', 'batch_size': 1024},
    }
  )
