"""Eight CPU devices, strict shapes: set before JAX starts."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
_flags = os.environ.get('XLA_FLAGS', '')
_flags += ' --xla_force_host_platform_device_count=8'
# Most of these tests' time goes into compiling; code that is not optimised is
# there in half of it.
os.environ['XLA_FLAGS'] = _flags + ' --xla_backend_optimization_level=0'

import jax

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.devices()  # reads the flags
os.environ['XLA_FLAGS'] = _flags  # processes that tests start run as anywhere
