#!/usr/bin/env bash
# Lints and tests in an environment of its own, on the CPU.
#
#   bash launch/test.sh [--slow | --reference] [ARGUMENT OF PYTEST]...
#
# --slow runs the slow ones too; --reference only those that compare with the
# PyTorch port (they install it into .venv-reference: torch 2.13, 1 GB).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
. launch/environment.sh

selection='not slow and not reference'
arguments=()
for argument in "$@"; do
  if [ "$argument" = --slow ]; then
    selection='not reference'
  elif [ "$argument" = --reference ]; then
    selection='reference'
  else
    arguments+=("$argument")
  fi
done

make_environment '.[test]'
# shellcheck source=launch/env.sh
. launch/env.sh cpu
unset JAX_COMPILATION_CACHE_DIR  # tests compile what they test
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
exec .venv/bin/python -m pytest -m "$selection" \
  ${arguments[@]+"${arguments[@]}"}
