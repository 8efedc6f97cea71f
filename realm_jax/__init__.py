"""REALM in JAX: a language model pre-trained together with its retriever.

Names of tensors carry their shape, one letter an axis:

  B  batch            K  candidates (null document included)
  N  blocks in Z      L  length in wordpieces
  M  masked positions D  hidden size
  H  heads            A  head size
  F  mlp size         V  vocabulary
  E  retrieval size   X  excluded rows of a query
  C  gold rows of a question   S  gold spans of a row

Lower case is a shard's own part (`rows_nE`). Einsum strings use these letters.
"""

__version__ = '0.1.0'
