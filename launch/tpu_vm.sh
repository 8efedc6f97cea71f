#!/usr/bin/env bash
# A run on two TPU slices, one that trains and one that builds the index; see
# tpu_vm.md.
#
#   bash launch/tpu_vm.sh [--dry-run] SETTINGS COMMAND [trainer | refresher]
#
# COMMAND is create, install, train, refresh, logs, stop, restart or delete.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/options.sh
. launch/options.sh

dry_run=''
if [ "${1:-}" = --dry-run ]; then
  dry_run=1
  shift
fi
[ $# -ge 2 ] || fail 'SETTINGS COMMAND are needed; see launch/tpu_vm.md'
[ -r "$1" ] || fail "$1: no such file of settings; see launch/tpu_vm.md"
settings=$1 command=$2 part=${3:-}
case $part in
  '' | trainer | refresher) ;;
  *) fail "$part: must be trainer or refresher" ;;
esac
[ $# -le 3 ] || fail "$4: too many arguments"

# shellcheck disable=SC2034  # the types are read by name
project='' zone='' name='' runtime='' trainer_type='' refresher_type=''
capacity=() realm=()
file=$settings
[[ $file = */* ]] || file=./$file # else `.` looks in PATH
# shellcheck source=/dev/null
. "$file"
for setting in project zone name runtime trainer_type refresher_type; do
  [ -n "${!setting}" ] || fail "$settings: $setting is not set"
done
workdir=$(workdir_of ${realm[@]+"${realm[@]}"}) || exit
[[ $workdir = gs://* ]] ||
  fail "--workdir: $workdir, must be gs://: the slices share nothing else"

resources=(gcloud compute tpus queued-resources)
place=("--project=$project" "--zone=$zone")

# on_all PART COMMAND: on all hosts of a slice.
on_all() {
  run gcloud compute tpus tpu-vm ssh "$name-$1" "${place[@]}" \
    --worker=all "--command=$2"
}

create() {
  local type=$1_type
  run "${resources[@]}" create "$name-$1" "${place[@]}" \
    "--node-id=$name-$1" "--accelerator-type=${!type}" \
    "--runtime-version=$runtime" ${capacity[@]+"${capacity[@]}"} --async
}

# A queued resource may wait for days; one that was preempted never comes.
await() {
  local state ask
  ask=("${resources[@]}" describe "$name-$1" "${place[@]}"
    '--format=value(state.state)')
  if [ -n "$dry_run" ]; then
    run "${ask[@]}"
    return
  fi
  while :; do
    state=$("${ask[@]}")
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        echo "error: $name-$1: $state; restart $1 makes it anew" >&2
        exit 1
        ;;
      *)
        echo "$name-$1: $state" >&2
        sleep 30
        ;;
    esac
  done
}

# The commit that is checked out here, with the pinned packages. Ubuntu 22.04
# has Python 3.10.
install() {
  await "$1"
  run git archive --format=tar.gz --output=realm.tar.gz HEAD
  run gcloud compute tpus tpu-vm scp realm.tar.gz "$name-$1:" "${place[@]}" \
    --worker=all
  run rm realm.tar.gz
  on_all "$1" 'sudo apt-get -q update &&
sudo apt-get -q install -y python3.11-venv &&
mkdir -p realm && tar -xzf realm.tar.gz -C realm && cd realm &&
python3.11 -m venv .venv &&
.venv/bin/pip install -q -r requirements-tpu.txt &&
.venv/bin/pip install -q --no-deps -e .'
}

# begin PART ARGUMENT...: realm on each host, started again where it fails.
begin() {
  local part=$1 words
  shift
  printf -v words ' %q' "$@" --distributed
  on_all "$part" "cd realm || exit
if kill -0 \"\$(cat realm.pid 2>/dev/null)\" 2>/dev/null; then
  echo 'error: realm is running here; stop it first' >&2
  exit 1
fi
nohup bash launch/local.sh --platform tpu --restarts 10 --$words \
>> realm.log 2>&1 < /dev/null &
echo \$! > realm.pid"
}

train() {
  begin trainer "${realm[@]}"
}

refresh() {
  begin refresher refresh --workdir "$workdir" --follow
}

logs() {
  run gcloud compute tpus tpu-vm ssh "$name-$1" "${place[@]}" --worker=0 \
    '--command=tail -n 100 -F realm/realm.log'
}

# The processes save and end; the slice stays.
stop() {
  # shellcheck disable=SC2016
  on_all "$1" 'cd realm && kill -TERM "$(cat realm.pid)" &&
while kill -0 "$(cat realm.pid)" 2>/dev/null; do sleep 1; done
tail -n 1 realm.log'
}

delete() {
  run "${resources[@]}" delete "$name-$1" "${place[@]}" --force --quiet
}

# After a preemption, which takes the machines: the run goes on from its last
# checkpoint.
restart() {
  delete "$1"
  create "$1"
  install "$1"
  if [ "$1" = trainer ]; then train; else refresh; fi
}

case $command in
  train | refresh)
    [ -z "$part" ] || fail "$part: $command takes no slice"
    "$command"
    ;;
  logs) logs "${part:-trainer}" ;;
  restart)
    [ -n "$part" ] || fail 'restart: which one, trainer or refresher?'
    restart "$part"
    ;;
  create | install)
    for part in ${part:-trainer refresher}; do
      "$command" "$part"
    done
    ;;
  stop | delete) # the other one too where one is gone
    failed=0
    for part in ${part:-trainer refresher}; do
      "$command" "$part" || failed=1
    done
    exit "$failed"
    ;;
  *) fail "$command: no such command; see launch/tpu_vm.md" ;;
esac
