"""Own text on one machine, from scratch, at a small size.

Command: see the README; one argument, the stage:

  realm ict --config experiments/own_text.py:ict --workdir runs/ict

It reads `corpus`, `questions.jsonl` and `dev_questions.jsonl` in the current
directory. The stages chain: ict, mlm,
pretrain, finetune.

Hardware: a CPU of a few cores, or one GPU. For a corpus of a few thousand
blocks; a larger one wants larger sizes and more steps.
"""

import ml_collections

_MODEL = {
  'vocab_size': 8192,
  'hidden_size': 128,
  'num_layers': 2,
  'num_heads': 4,
  'mlp_size': 512,
  'max_positions': 512,
  'retrieval_size': 128,
  'dropout': 0.0,
}


def get_config(stage: str = 'pretrain') -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict(
    {
      'corpus': 'corpus',
      'batch_size': 32,
      'num_steps': 1000,
      'query_length': 64,
      'reader_length': 352,
      'pooling': 'mean',
      'score_temperature': 8.0,
      'model': _MODEL,
      'optimizer': {
        'learning_rate': 1e-3,
        'warmup_steps': 50,
        'bias_correction': True,
      },
    }
  )
  if stage == 'mlm':
    config.init_from = 'runs/ict'
    config.masking = 'uniform'
    config.max_masks = 48
  elif stage == 'pretrain':
    config.init_from = 'runs/mlm'
    config.batch_size = 16
    config.num_candidates = 5
    config.checkpoint_every = 100
    # The reader learns to read what is found before the retriever follows it.
    config.freeze_retriever_steps = 200
    config.optimizer.retriever_learning_rate_scale = 0.3
  elif stage == 'finetune':
    config.init_from = 'runs/pretrain'
    config.questions = 'questions.jsonl'
    config.dev_questions = 'dev_questions.jsonl'
    config.num_steps = 300
    config.retriever_beam = 100
    config.optimizer.learning_rate = 5e-4
  elif stage != 'ict':
    raise ValueError(
      f'own_text.py:{stage}: choose from ict, mlm, pretrain, finetune'
    )
  return config
