r"""What the reference computes: transformers 4.38.2 on torch.

Run by `test_reference.py` in an environment of its own; this file imports
nothing of realm_jax. By hand, to make the fixtures in `tests/fixtures` anew:

  python3 -m venv /tmp/reference
  /tmp/reference/bin/pip install torch==2.13.0 transformers==4.38.2 'numpy<2'
  /tmp/reference/bin/python tests/reference/torch_reference.py \
    fixtures tests/fixtures/reference
"""

import argparse
import json
import pathlib

import numpy as np
import torch
import transformers

_WORDS = 61
_VOCAB = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']


def realm_config(**changes):
  """A small model of odd sizes, without dropout."""
  return transformers.RealmConfig(
    **{
      'vocab_size': _WORDS,
      'hidden_size': 24,
      'num_hidden_layers': 2,
      'num_attention_heads': 3,
      'intermediate_size': 40,
      'max_position_embeddings': 40,
      'retriever_proj_size': 10,
      'span_hidden_size': 12,
      'max_span_width': 4,
      'num_candidates': 3,
      'reader_beam_size': 2,
      'reader_seq_len': 22,
      'searcher_beam_size': 4,
      'initializer_range': 0.2,
      'hidden_dropout_prob': 0.0,
      'attention_probs_dropout_prob': 0.0,
      **changes,
    }
  )


def text(generator, *shape, least=4):
  """Ids, mask and segments; texts end in padding, of id 0."""
  ids = torch.randint(5, _WORDS, shape, generator=generator)
  length = torch.randint(least, shape[-1] + 1, shape[:-1], generator=generator)
  mask = (torch.arange(shape[-1]) < length[..., None]).long()
  segment = (torch.arange(shape[-1]) >= shape[-1] // 3).long() * mask
  return {
    'input_ids': ids * mask,
    'attention_mask': mask,
    'token_type_ids': segment,
  }


def inputs(kind, config):
  """Inputs of a model of a kind."""
  generator = torch.Generator().manual_seed(3)
  if kind in ('bert', 'embedder'):
    return text(generator, 3, 13)
  if kind == 'scorer':
    found = text(generator, 2, config.num_candidates, 17)
    return {
      **text(generator, 2, 9),
      **{f'candidate_{name}': x for name, x in found.items()},
    }
  if kind == 'encoder':
    shape = (2, config.num_candidates, 15)
    mask = torch.zeros(2, 15)
    mask[0, 2] = mask[0, 3] = mask[1, 1] = 1
    return {
      **text(generator, *shape),
      'relevance_score': torch.randn(shape[:2], generator=generator),
      'labels': torch.randint(5, _WORDS, (2, 15), generator=generator),
      'mlm_mask': mask,
    }
  beam, length = config.reader_beam_size, config.reader_seq_len
  given = text(generator, beam, length, least=14)
  body = (torch.arange(length) >= 5) & (torch.arange(length) < 13)
  return {
    **given,
    'block_mask': body[None].repeat(beam, 1),
    'relevance_score': torch.randn(beam + 2, generator=generator),
    'has_answers': torch.tensor([True, False, True] + [False] * beam)[
      : beam + 2
    ],
    'start_positions': torch.tensor([[6, -1], [9, 5]])[:beam],
    'end_positions': torch.tensor([[7, -1], [9, 8]])[:beam],
  }


_CLASSES = {
  'embedder': transformers.RealmEmbedder,
  'scorer': transformers.RealmScorer,
  'encoder': transformers.RealmKnowledgeAugEncoder,
  'reader': transformers.RealmReader,
  'open_qa': transformers.RealmForOpenQA,
}


def forward(kind, model, given):
  """Outputs by name."""
  if kind == 'bert':
    inner = model.bert(**given)
    return {
      'last_hidden_state': inner.last_hidden_state,
      'pooler_output': inner.pooler_output,
      'logits': model(**given).prediction_logits,
    }
  if kind == 'embedder':
    return {'projected_score': model(**given).projected_score}
  if kind == 'scorer':
    found = model(**given)
    return {
      name: found[name]
      for name in ('relevance_score', 'query_score', 'candidate_score')
    }
  if kind == 'encoder':
    batch, candidates, length = given['input_ids'].shape
    found = model(**given)
    logits = found.logits.reshape(batch * candidates, length, -1)
    return {'logits': logits, 'loss': found.loss}
  found = model(**given)
  names = ('loss', 'retriever_loss', 'reader_loss', 'retriever_correct')
  names += ('reader_correct', 'block_idx', 'candidate', 'start_pos', 'end_pos')
  return {name: found[name] for name in names}


def gradients(kind, directory):
  """Gradients of an encoder's or a reader's loss, by key."""
  model = _CLASSES[kind].from_pretrained(directory).eval()
  given = inputs(kind, model.config)
  forward(kind, model, given)['loss'].backward()
  return {
    name: parameter.grad
    for name, parameter in model.named_parameters()
    if parameter.grad is not None
  }


def save(path, tensors):
  arrays = {name: x.detach().numpy() for name, x in tensors.items()}
  np.savez_compressed(path, **arrays)


def fixtures(directory):
  """A small model of each class, with inputs and outputs."""
  directory.mkdir(parents=True, exist_ok=True)
  for kind in ('bert', *_CLASSES):
    torch.manual_seed(7)
    folder = directory / kind
    config = realm_config()
    if kind == 'bert':
      config = transformers.BertConfig(
        vocab_size=_WORDS,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=40,
        hidden_act='gelu',
        initializer_range=0.2,
      )
      model = transformers.BertForPreTraining(config).eval()
    elif kind == 'scorer':
      query = transformers.RealmEmbedder(config)
      model = transformers.RealmScorer(config, query_embedder=query).eval()
    elif kind == 'open_qa':
      config = realm_config(num_block_records=37)
      model = transformers.RealmForOpenQA(config).eval()
      model.block_emb.normal_(generator=torch.Generator().manual_seed(5))
    else:
      model = _CLASSES[kind](config).eval()
    # The layer norms' weights are all ones, biases zeros: nothing to see.
    for parameter in model.parameters():
      if parameter.ndim == 1:
        parameter.data += 0.1 * torch.randn(parameter.shape)
    shards = '60KB' if kind == 'scorer' else '5GB'
    model.save_pretrained(folder, max_shard_size=shards)
    parameters = sum(x.numel() for x in model.parameters())
    (folder / 'parameters.json').write_text(json.dumps(parameters))
    if kind == 'open_qa':
      words = _VOCAB + [f'w{n}' for n in range(_WORDS - len(_VOCAB))]
      (folder / 'vocab.txt').write_text('\n'.join(words) + '\n')
      records = np.empty(37, object)
      records[:] = [
        f'w{n} w{n + 1} w3. W{n % 5} w9.'.encode() for n in range(37)
      ]
      np.save(folder / 'block_records.npy', records)
      embedder = {'input_ids': inputs('embedder', config)['input_ids']}
      found = model.embedder(**embedder).projected_score
      save(folder / 'query.npz', {**embedder, 'projected_score': found})
      given = inputs('reader', config)
      found = forward('reader', model.reader, given)
      save(folder / 'expected.npz', {**given, **found})
    else:
      given = inputs(kind, config)
      save(folder / 'expected.npz', {**given, **forward(kind, model, given)})


def pickled(source, directory):
  """The same model as pytorch_model.bin, and in shards."""
  for name, shards in (('one', '5GB'), ('shards', '60KB')):
    model = transformers.RealmReader.from_pretrained(source)
    model.save_pretrained(
      directory / name, safe_serialization=False, max_shard_size=shards
    )


def reload(kind, directory):
  """Loads what `realm export` wrote; which keys were missing or unexpected."""
  more = {}
  if kind == 'scorer':
    # Without it the class takes one embedder for both.
    config = transformers.RealmConfig.from_pretrained(directory)
    more['query_embedder'] = transformers.RealmEmbedder(config)
  model, told = _CLASSES[kind].from_pretrained(
    directory, output_loading_info=True, **more
  )
  model.eval()
  part = model.reader if kind == 'open_qa' else model
  given = inputs('reader' if kind == 'open_qa' else kind, model.config)
  found = forward('reader' if kind == 'open_qa' else kind, part, given)
  save(directory / 'found.npz', {**given, **found})
  return {
    name: sorted(told[name])
    for name in ('missing_keys', 'unexpected_keys', 'mismatched_keys')
  }


def hidden(directory, tokens, output):
  """Mean of the last hidden states of a BERT, for ids [n, L]."""
  model = transformers.BertModel.from_pretrained(directory).eval()
  found = []
  with torch.no_grad():
    for ids in torch.tensor(np.load(tokens)).split(16):
      mask = (ids != 0).long()
      # As the documents here: segment 1 after the first [SEP].
      after = (ids == 102).cumsum(1) - (ids == 102).long()
      state = model(ids, mask, (after > 0).long() * mask).last_hidden_state
      mask = mask[..., None]
      found.append((state * mask).sum(1) / mask.sum(1))
  np.save(output, torch.cat(found).numpy())


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('what')
  parser.add_argument('arguments', nargs='*')
  flags = parser.parse_args()
  torch.set_num_threads(2)
  if flags.what == 'fixtures':
    fixtures(pathlib.Path(flags.arguments[0]))
  elif flags.what == 'gradients':
    kind, directory, output = flags.arguments
    save(output, gradients(kind, directory))
  elif flags.what == 'pickled':
    pickled(*map(pathlib.Path, flags.arguments))
  elif flags.what == 'reload':
    kind, directory = flags.arguments
    print(json.dumps(reload(kind, pathlib.Path(directory))))
  elif flags.what == 'hidden':
    hidden(*flags.arguments)
  else:
    raise SystemExit(f'{flags.what}: not one of them')


if __name__ == '__main__':
  main()
