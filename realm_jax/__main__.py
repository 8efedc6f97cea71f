"""`python -m realm_jax VERB ...` is `realm VERB ...`."""

import sys

from realm_jax import cli

if __name__ == '__main__':
  sys.exit(cli.main())
