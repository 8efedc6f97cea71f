r"""One training step of the PyTorch port; `port.py` starts it.

The REALM scorer and knowledge-augmented encoder of transformers 4.38.2, its
last version that has them, in an environment of its own: this file imports
nothing of realm_jax. Batch 1, since activations of more do not fit; AdamW.
Prints one line of JSON.
"""

import argparse
import json
import time

import torch
import transformers


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--examples', type=int, default=2)
  parser.add_argument('--candidates', type=int, default=8)
  parser.add_argument('--layers', type=int, default=12)
  parser.add_argument('--query-length', type=int, default=96)
  parser.add_argument('--block-length', type=int, default=288)
  parser.add_argument('--masks', type=int, default=10)
  parser.add_argument('--threads', type=int, default=2)
  flags = parser.parse_args()
  print(json.dumps(measure(flags)))


def measure(flags: argparse.Namespace) -> dict[str, object]:
  """Times examples, one a step; the first warms up."""
  torch.set_num_threads(flags.threads)
  torch.manual_seed(0)
  config = transformers.RealmConfig(
    num_candidates=flags.candidates,
    num_hidden_layers=flags.layers,
    pad_token_id=0,
  )
  scorer = transformers.RealmScorer(config).train()
  encoder = transformers.RealmKnowledgeAugEncoder(config).train()
  parameters = [*scorer.parameters(), *encoder.parameters()]
  optimizer = torch.optim.AdamW(parameters, lr=1e-5)
  joint = flags.query_length + flags.block_length - 2
  query = words(1, flags.query_length)
  document = words(1, flags.candidates, flags.block_length)
  text = words(1, flags.candidates, joint)
  # The port wants labels and masks of every position.
  labels = words(1, joint)
  masked = torch.zeros(1, joint)
  masked[:, 1 : 1 + flags.masks] = 1
  times = []
  for _ in range(flags.examples + 1):
    began = time.perf_counter()
    score = scorer(
      input_ids=query,
      candidate_input_ids=document,
      candidate_attention_mask=torch.ones_like(document),
      candidate_token_type_ids=torch.zeros_like(document),
    ).relevance_score
    loss = encoder(
      input_ids=text,
      relevance_score=score,
      labels=labels,
      mlm_mask=masked,
    ).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.perf_counter() - began)
  return {
    'torch': torch.__version__,
    'transformers': transformers.__version__,
    'threads': flags.threads,
    'example_s': [round(t, 2) for t in times[1:]],
    'loss': round(float(loss), 3),
  }


def words(*shape: int) -> torch.Tensor:
  return torch.randint(1000, 30000, shape)


if __name__ == '__main__':
  main()
