"""BERT in plain numpy, float64, by Hugging Face keys: what we hold against."""

import math

import numpy as np


def random_tensors(model, seed=0, head=True, pooler=True):
  """Weights of a BERT of these sizes, without a prefix, as float32."""
  size, mlp = model.hidden_size, model.mlp_size
  shapes = {
    'embeddings.word_embeddings.weight': (model.vocab_size, size),
    'embeddings.position_embeddings.weight': (model.max_positions, size),
    'embeddings.token_type_embeddings.weight': (2, size),
    'embeddings.LayerNorm': (size,),
  }
  for i in range(model.num_layers):
    layer = f'encoder.layer.{i}.'
    for name in ('self.query', 'self.key', 'self.value', 'output.dense'):
      shapes[f'{layer}attention.{name}'] = (size, size)
    shapes[f'{layer}attention.output.LayerNorm'] = (size,)
    shapes[f'{layer}intermediate.dense'] = (mlp, size)
    shapes[f'{layer}output.dense'] = (size, mlp)
    shapes[f'{layer}output.LayerNorm'] = (size,)
  if pooler:
    shapes['pooler.dense'] = (size, size)
  if head:
    shapes['cls.predictions.bias'] = (model.vocab_size,)
    shapes['cls.predictions.transform.dense'] = (size, size)
    shapes['cls.predictions.transform.LayerNorm'] = (size,)
  rng = np.random.default_rng(seed)
  tensors = {}
  for key, shape in shapes.items():
    if key.endswith(('.weight', '.bias')):
      tensors[key] = rng.normal(0, 0.3, shape)
    else:
      centre = 1 if key.endswith('LayerNorm') else 0
      tensors[f'{key}.weight'] = rng.normal(centre, 0.3, shape)
      tensors[f'{key}.bias'] = rng.normal(0, 0.3, shape[:1])
  return {key: array.astype(np.float32) for key, array in tensors.items()}


def linear(tensors, key, x):
  weight = tensors[f'{key}.weight'].astype(np.float64)
  return x @ weight.T + tensors[f'{key}.bias']


def normalise(x, eps):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)


def norm(tensors, key, x, eps=1e-12):
  return normalise(x, eps) * tensors[f'{key}.weight'] + tensors[f'{key}.bias']


def gelu(x, tanh):
  if tanh:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x / 2 * (1 + np.tanh(inner))
  return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attend(query, key, value, real, num_heads):
  """One text: [L, D] arrays; `real` [L] says what may be seen."""
  heads = []
  for q, k, v in zip(
    *(np.split(x, num_heads, axis=-1) for x in (query, key, value)),
    strict=True,
  ):
    score = np.where(real, q @ k.T / math.sqrt(q.shape[-1]), -np.inf)
    weight = np.exp(score - score.max(-1, keepdims=True))
    heads.append(weight / weight.sum(-1, keepdims=True) @ v)
  return np.concatenate(heads, axis=-1)


def hidden(tensors, model, token, segment):
  """Hidden states [L, D] of one text; token 0 is padding."""
  word, position, kind = (
    tensors[f'embeddings.{name}_embeddings.weight'].astype(np.float64)
    for name in ('word', 'position', 'token_type')
  )
  x = word[token] + position[: len(token)] + kind[segment]
  x = norm(tensors, 'embeddings.LayerNorm', x)
  for i in range(model.num_layers):
    layer = f'encoder.layer.{i}'
    qkv = (
      linear(tensors, f'{layer}.attention.self.{name}', x)
      for name in ('query', 'key', 'value')
    )
    y = attend(*qkv, np.asarray(token) != 0, model.num_heads)
    y = linear(tensors, f'{layer}.attention.output.dense', y)
    x = norm(tensors, f'{layer}.attention.output.LayerNorm', x + y)
    y = linear(tensors, f'{layer}.intermediate.dense', x)
    y = gelu(y, model.activation == 'gelu_tanh')
    y = linear(tensors, f'{layer}.output.dense', y)
    x = norm(tensors, f'{layer}.output.LayerNorm', x + y)
  return x


def mlm_logits(tensors, model, x):
  x = linear(tensors, 'cls.predictions.transform.dense', x)
  x = gelu(x, model.activation == 'gelu_tanh')
  x = norm(tensors, 'cls.predictions.transform.LayerNorm', x)
  word = tensors['embeddings.word_embeddings.weight']
  return x @ word.T.astype(np.float64) + tensors['cls.predictions.bias']
