"""Pre-training with X = CC-News and Z = Wikipedia (paper section 4.3).

*Not run.*

  realm prepare --input ccnews.jsonl.zst \
    --vocab runs/bert-base-uncased/vocab.txt --output runs/ccnews --workers 64
  realm pretrain --config experiments/pretrain_ccnews.py \
    --workdir runs/pretrain_ccnews
  realm refresh --workdir runs/pretrain_ccnews --follow

Input: English CC-News articles as JSON lines; else as pretrain_wiki.py.
Hardware: as pretrain_wiki.py.
Expected: after fine-tuning, test exact match of 40.4 on NQ, 40.7 on WQ and
42.9 on CT.
"""

import ml_collections
import pretrain_wiki


def get_config() -> ml_collections.ConfigDict:
  config = pretrain_wiki.get_config()
  config.text_corpus = 'runs/ccnews'
  return config
