# shellcheck shell=bash
# Sourced by the other scripts: makes .venv and installs the project there.
#
#   make_environment PROJECT    e.g. make_environment '.[test]'

# The newest Python that every dependency has wheels for. A command that is
# there but does not run (a pyenv shim of a version that is not chosen), or
# that cannot make an environment, is passed over.
find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3 python; do
    if "$name" -c 'import ensurepip, sys, venv
sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$name"
      return
    fi
  done
  echo 'error: no Python 3.11 or newer with venv on PATH' >&2
  return 1
}

make_environment() {
  local mark=".venv/installed $1" python
  if [ "$mark" -nt setup.py ] && .venv/bin/python -c '' 2>/dev/null; then
    return
  fi
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python) || return
    echo "Making .venv with $python" >&2
    "$python" -m venv --clear .venv || return
  fi
  .venv/bin/python -m pip install --quiet --editable "$1" >&2 || return
  touch "$mark"
}
