#!/usr/bin/env bash
# Runs one verb of realm on this machine, as one process or as several that
# make one run, and starts it again when it was stopped; see local.md.
#
#   bash launch/local.sh [--processes N] [--restarts N] [--platform P]
#     [--dry-run] -- VERB ARGUMENT...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/options.sh
. launch/options.sh

processes=1 restarts=0 platform=cpu dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --processes) processes=$(number "$@"); shift 2 ;;
    --restarts) restarts=$(number "$@"); shift 2 ;;
    --platform) platform=$(value "$@"); shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    --) shift; break ;;
    *) fail "$1: unknown; see launch/local.md" ;;
  esac
done
[ $# -gt 0 ] || fail 'a verb of realm is needed after --'
[ "$processes" -gt 0 ] || fail '--processes: 0, must be positive'
use_platform "$platform"
export PATH="$PWD/.venv/bin:$PATH"

running=() stopped=''

# One process takes its arguments as they are: on a host of a pod they say
# --distributed.
start() {
  local place=0 port=PORT
  if [ "$processes" -gt 1 ] && [ -z "$dry_run" ]; then
    # Another one for each start: the last may be in use still.
    port=$(python -c 'import socket
free = socket.create_server(("127.0.0.1", 0))
print(free.getsockname()[1])')
  fi
  for ((; place < processes; place++)); do
    local cluster=()
    if [ "$processes" -gt 1 ]; then
      cluster=("--coordinator=127.0.0.1:$port" "--num-processes=$processes"
        "--process-id=$place")
    fi
    if [ -n "$dry_run" ]; then
      run realm "$@" ${cluster[@]+"${cluster[@]}"}
    else
      realm "$@" ${cluster[@]+"${cluster[@]}"} &
      running+=($!)
    fi
  done
}

# The processes save and end. INT: a child in the background ignores Ctrl-C.
stop() {
  stopped=1
  terminate
}

terminate() {
  if [ ${#running[@]} -gt 0 ]; then
    kill -TERM "${running[@]}" 2>/dev/null || true
  fi
}

# Waits for all; status is that of the first to fail.
finish() {
  local process left
  status=0
  while [ ${#running[@]} -gt 0 ]; do
    sleep 0.2 || true # Ctrl-C reaches it too
    left=()
    for process in "${running[@]}"; do
      if alive "$process"; then
        left+=("$process")
      elif [ "$status" -eq 0 ]; then
        wait "$process" || status=$?
      fi
    done
    if [ ${#left[@]} -lt ${#running[@]} ]; then
      running=(${left[@]+"${left[@]}"})
      # Those that save must not be disturbed; 75 is agreed on by all.
      case $status in 0 | 75) ;; *) terminate ;; esac
    fi
  done
}

trap stop TERM INT
while :; do
  start "$@"
  if [ -n "$stopped" ]; then # meanwhile
    terminate
  fi
  finish
  if [ "$status" -eq 0 ] || [ -n "$stopped" ] || [ -n "$dry_run" ]; then
    exit "$status"
  elif [ "$status" -ne 75 ]; then
    ((restarts-- > 0)) || exit "$status"
  fi
  echo "local.sh: status $status; starting again" >&2
done
