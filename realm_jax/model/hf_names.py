"""Where each tensor of the Hugging Face layout lies in our parameter trees.

The classes are those of transformers 4.38: BERT's and REALM's. A tensor is live
(it has a place in a part), dead (their class has it and never uses it: it is
kept aside, so that an export can give it back) or an alias (the same values
under a second name, which a file may leave out).
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from realm_jax.config import ModelConfig
from realm_jax.model import parts


class Tensor(NamedTuple):
  """Where a tensor lies: their key, our path, and is it transposed.

  `Linear.weight` is [out, in], a kernel [in, out]. Layers are `{i}` in a key
  and the leading axis of our stacked array.
  """

  key: str
  path: tuple[str, ...]
  transposed: bool = False

  @property
  def stacked(self) -> bool:
    return '{i}' in self.key

  def keys(self, num_layers: int) -> list[str]:
    """The keys of all layers, or the one key."""
    return [self.key.format(i=i) for i in range(num_layers * self.stacked or 1)]


def _embedding(key: str, path: str) -> list[Tensor]:
  return [Tensor(f'{key}.weight', (*path.split('/'), 'embedding'))]


def _linear(key: str, path: str) -> list[Tensor]:
  names = tuple(path.split('/'))
  return [
    Tensor(f'{key}.weight', (*names, 'kernel'), transposed=True),
    Tensor(f'{key}.bias', (*names, 'bias')),
  ]


def _norm(key: str, path: str) -> list[Tensor]:
  names = tuple(path.split('/'))
  return [
    Tensor(f'{key}.weight', (*names, 'scale')),
    Tensor(f'{key}.bias', (*names, 'bias')),
  ]


_LAYER = 'encoder.layer.{i}'

# Keys of the backbone, without what stands before them.
_BACKBONE = [
  *_embedding('embeddings.word_embeddings', 'bert/word'),
  *_embedding('embeddings.position_embeddings', 'bert/position'),
  *_embedding('embeddings.token_type_embeddings', 'bert/segment'),
  *_norm('embeddings.LayerNorm', 'bert/norm'),
  *_linear(f'{_LAYER}.attention.self.query', 'bert/layers/query'),
  *_linear(f'{_LAYER}.attention.self.key', 'bert/layers/key'),
  *_linear(f'{_LAYER}.attention.self.value', 'bert/layers/value'),
  *_linear(f'{_LAYER}.attention.output.dense', 'bert/layers/output'),
  *_norm(f'{_LAYER}.attention.output.LayerNorm', 'bert/layers/attention_norm'),
  *_linear(f'{_LAYER}.intermediate.dense', 'bert/layers/mlp_in'),
  *_linear(f'{_LAYER}.output.dense', 'bert/layers/mlp_out'),
  *_norm(f'{_LAYER}.output.LayerNorm', 'bert/layers/mlp_norm'),
]
_POOLER = _linear('pooler.dense', 'pooler')
_PROJECTION = [
  *_linear('cls.dense', 'projection'),
  *_norm('cls.LayerNorm', 'norm'),
]
_MLM_HEAD = [
  *_linear('cls.predictions.transform.dense', 'transform'),
  *_norm('cls.predictions.transform.LayerNorm', 'norm'),
  Tensor('cls.predictions.bias', ('bias',)),
]
_SPAN_HEAD = [
  *_linear('qa_outputs.dense_intermediate', 'span'),
  *_norm('qa_outputs.layer_normalization', 'norm'),
  *_linear('qa_outputs.dense_output', 'output'),
]

WORD = 'embeddings.word_embeddings.weight'
DECODER = 'cls.predictions.decoder.weight'
_DECODER_BIAS = ('cls.predictions.decoder.bias', 'cls.predictions.bias')
_POSITION_IDS = 'embeddings.position_ids'  # a buffer: 0, 1, 2, ...


def table(
  name: parts.Part, backbone: str, before: str = ''
) -> dict[str, list[Tensor]]:
  """Every live tensor of a part, by group.

  Args:
    name: 'embedder', 'encoder' or 'reader'.
    backbone: what stands before the keys of the transformer and its pooler:
      'bert.', 'realm.' or nothing.
    before: what stands before all keys of the part.

  Returns:
    'backbone' and the part's heads: 'pooler' (of pooling 'cls') and
    'projection', 'mlm_head', or 'span_head'.
  """
  heads = {
    'embedder': {'pooler': _POOLER, 'projection': _PROJECTION},
    'encoder': {'mlm_head': _MLM_HEAD},
    'reader': {'span_head': _SPAN_HEAD},
  }
  inner = {'backbone', 'pooler'}
  return {
    label: [
      tensor._replace(
        key=before + (backbone if label in inner else '') + tensor.key
      )
      for tensor in group
    ]
    for label, group in {'backbone': _BACKBONE, **heads[name]}.items()
  }


class Kind(NamedTuple):
  """A class of the REALM models.

  `parts` has, by what stands before a part's keys, which module it is and what
  our checkpoints call it.
  """

  architecture: str
  parts: dict[str, tuple[parts.Part, str]]


KINDS = {
  'embedder': Kind('RealmEmbedder', {'': ('embedder', 'document_embedder')}),
  'scorer': Kind(
    'RealmScorer',
    {
      'embedder.': ('embedder', 'document_embedder'),
      'query_embedder.': ('embedder', 'query_embedder'),
    },
  ),
  'encoder': Kind('RealmKnowledgeAugEncoder', {'': ('encoder', 'encoder')}),
  'reader': Kind('RealmReader', {'': ('reader', 'reader')}),
  # Its embedder is the query's: the blocks are embedded already.
  'open_qa': Kind(
    'RealmForOpenQA',
    {
      'embedder.': ('embedder', 'query_embedder'),
      'reader.': ('reader', 'reader'),
    },
  ),
}
BLOCKS = 'block_emb'  # of open_qa, [N, E]


def kind_of(keys: set[str]) -> str:
  """The kind of model whose tensors have these keys; else 'bert'."""
  if BLOCKS in keys or f'reader.realm.{WORD}' in keys:
    return 'open_qa'
  if f'embedder.realm.{WORD}' in keys:
    return 'scorer'
  if f'realm.{WORD}' not in keys:
    return 'bert'
  if 'cls.dense.weight' in keys:
    return 'embedder'
  return 'reader' if 'qa_outputs.dense_output.weight' in keys else 'encoder'


def dead(name: parts.Part, model: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Keys and shapes of what a REALM class has and never uses."""
  size, words = model.hidden_size, model.vocab_size
  pooler = {
    'realm.pooler.dense.weight': (size, size),
    'realm.pooler.dense.bias': (size,),
  }
  head = {
    'cls.predictions.bias': (words,),
    'cls.predictions.transform.dense.weight': (size, size),
    'cls.predictions.transform.dense.bias': (size,),
    'cls.predictions.transform.LayerNorm.weight': (size,),
    'cls.predictions.transform.LayerNorm.bias': (size,),
    DECODER: (words, size),
  }
  return {
    'embedder': head,
    'encoder': pooler,
    'reader': {**pooler, **head},
  }[name]


def aliases(name: parts.Part, before: str, backbone: str) -> dict[str, str]:
  """Second names of a part's tensors, and the first ('': of no parameter)."""
  found = {
    before + _DECODER_BIAS[0]: before + _DECODER_BIAS[1],
    before + backbone + _POSITION_IDS: '',
  }
  if name == 'encoder':
    found[before + DECODER] = before + backbone + WORD
  return found


def dead_of_bert(
  backbone: str, pooling: str, model: ModelConfig
) -> dict[str, tuple[int, ...]]:
  """What a plain BERT may have that is not used here: keys and shapes."""
  size = model.hidden_size
  shapes: dict[str, tuple[int, ...]] = {
    'cls.seq_relationship.weight': (2, size),
    'cls.seq_relationship.bias': (2,),
  }
  if pooling != 'cls':
    shapes[f'{backbone}pooler.dense.weight'] = (size, size)
    shapes[f'{backbone}pooler.dense.bias'] = (size,)
  return shapes


# Variables of TensorFlow checkpoints: BERT's, and those of the 2020 release,
# whose embedder lies inside two to four modules.
_TENSORFLOW = [
  (re.compile(r'^(?:module/){2,4}(?=bert/|cls/)'), 'embedder|'),
  (re.compile(r'^(?:module/){2,3}(?=dense/|LayerNorm/)'), 'embedder|cls/'),
  (re.compile(r'^reader/module/(?=bert/|cls/)'), 'reader|'),
  (re.compile(r'^reader/dense/'), 'reader|qa_outputs/dense_intermediate/'),
  (re.compile(r'^reader/dense_1/'), 'reader|qa_outputs/dense_output/'),
  (
    re.compile(r'^reader/layer_normalization/'),
    'reader|qa_outputs/layer_normalization/',
  ),
  (re.compile(r'^(?=bert/|cls/|block_emb$)'), '|'),
]
_TENSORFLOW_LEAVES = {
  'kernel': 'weight',
  'gamma': 'weight',
  'beta': 'bias',
  'output_bias': 'bias',
  'output_weights': 'weight',
}
_OPTIMIZER = re.compile(
  r'(^|/)(adam_[mv]|AdamWeightDecayOptimizer(_\d+)?|global_step)(/|$)'
)


def from_tensorflow(
  names: Iterable[str], realm: bool
) -> Iterator[tuple[str, str, bool]]:
  """Names of TensorFlow variables in the Hugging Face layout.

  Args:
    names: all variables of a checkpoint; those of optimizers are left out.
    realm: the checkpoint is of a REALM model, not of BERT.

  Yields:
    variable, key, and whether the array must be transposed. A name that is not
    known is its own key.
  """
  found = []
  for name in names:
    if _OPTIMIZER.search(name):
      continue
    for pattern, replacement in _TENSORFLOW:
      if pattern.search(name):
        found.append((name, *pattern.sub(replacement, name).split('|', 1)))
        break
    else:
      found.append((name, '', name))
  # Classes of two parts name them.
  whose = len({owner for _, owner, _ in found if owner}) > 1
  for name, owner, rest in found:
    *path, leaf = rest.split('/')
    if leaf.endswith('_embeddings'):
      path, leaf = [*path, leaf], 'kernel'
    if realm and path and path[0] == 'bert':
      path[0] = 'realm'
    path = [re.sub(r'^layer_(\d+)$', r'layer.\1', part) for part in path]
    key = '.'.join([*path, _TENSORFLOW_LEAVES.get(leaf, leaf)])
    transposed = rest.endswith('/kernel')
    yield name, f'{owner}.{key}' if whose and owner else key, transposed
