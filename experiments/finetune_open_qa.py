"""Fine-tuning for open-domain question answering (paper section 4; ORQA 4).

*Not run.* The argument is nq, wq or trec:

  realm finetune --config experiments/finetune_open_qa.py:nq \
    --workdir runs/finetune_nq
  realm evaluate --workdir runs/finetune_nq --questions runs/qa/nq_test.jsonl \
    --output runs/finetune_nq/test

Input: `runs/pretrain_wiki` with its index, and the questions in ORQA's split
in `runs/qa`: `{nq,wq,trec}_{train,dev,test}.jsonl`. For the second row below
add `--config.init_from=runs/pretrain_ccnews`.
Hardware: one accelerator with 24 GiB or more (the rows in bfloat16 and the
token table of 13,353,718 blocks take 11 GiB); of several, hide the others
(`CUDA_VISIBLE_DEVICES=0`).
Expected test exact match:

  X          | NQ   | WQ   | CT
  Wikipedia  | 39.2 | 40.2 | 46.8
  CC-News    | 40.4 | 40.7 | 42.9

The paper does not give the warm-up; a tenth of the steps and at most 10,000
is this project's choice. So is 60 epochs of WQ and CT, out of 20 to 60.
"""

import ml_collections

# Training questions and epochs.
_DATA = {'nq': (79_168, 2), 'wq': (3417, 60), 'trec': (1353, 60)}


def get_config(name: str = 'nq') -> ml_collections.ConfigDict:
  if name not in _DATA:
    raise ValueError(
      f'finetune_open_qa.py:{name}: choose from {", ".join(_DATA)}'
    )
  questions, epochs = _DATA[name]
  steps = questions * epochs  # one question a step, as the release has it
  return ml_collections.ConfigDict(
    {
      'corpus': 'runs/wiki',
      'questions': f'runs/qa/{name}_train.jsonl',
      'dev_questions': f'runs/qa/{name}_dev.jsonl',
      'init_from': 'runs/pretrain_wiki',
      'num_steps': steps,
      'batch_size': 1,
      'mesh': {'data': 1},
      'reader_length': 320,
      'retriever_beam': 5000,
      'reader_beam': 5,
      # Blocks behind the last one listed are left out of the loss. Lists take
      # some 200 bytes a row of the host's memory while they are made: 17 GB.
      'max_gold_rows': 1024,
      'checkpoint_every': 5000,
      'optimizer': {
        'learning_rate': 1e-5,
        'warmup_steps': min(10_000, steps // 10),
      },
      'model': {'activation': 'gelu', 'max_span_width': 10},
    }
  )
