#!/usr/bin/env bash
# The whole pipeline on the built-in toy world, on the CPU, in an environment
# of its own.
#
#   bash launch/quickstart.sh [ARGUMENT OF realm quickstart]...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
. launch/environment.sh

make_environment .
# shellcheck source=launch/env.sh
. launch/env.sh cpu
exec .venv/bin/realm quickstart --workdir runs/quickstart "$@"
