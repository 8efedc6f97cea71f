"""ICT warm start on Wikipedia, from BERT-base (paper section 3.4; ORQA 5).

*Not run.*

  realm prepare --input enwiki-20181220.jsonl.zst \
    --vocab runs/bert-base-uncased/vocab.txt --output runs/wiki --workers 64
  realm ict --config experiments/ict_wiki.py --workdir runs/ict_wiki

Input: the English Wikipedia of 20 December 2018 as JSON lines, 13,353,718
blocks; BERT-base uncased in the Hugging Face layout in
`runs/bert-base-uncased`.
Hardware: 64 TPU v4 chips; the softmax runs over the 4,096 blocks of the batch.
On fewer, `--config.micro_batches=16` takes the same step in less memory.
Expected: zero-shot recall@5 of 13.9 on NQ dev (the paper's baseline
retriever), from which pre-training starts.
The paper does not give the warm-up; 10,000 steps are this project's choice.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      'corpus': 'runs/wiki',
      'init_from': 'runs/bert-base-uncased',
      'num_steps': 100_000,
      'batch_size': 4096,
      'query_length': 64,
      'sentence_removal': 0.9,
      'checkpoint_every': 5000,
      'optimizer': {'learning_rate': 1e-4, 'warmup_steps': 10_000},
      'model': {
        'activation': 'gelu',  # BERT's
        'compute_dtype': 'bfloat16',
        'remat': 'full',
      },
    }
  )
