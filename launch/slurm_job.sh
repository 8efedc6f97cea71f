#!/usr/bin/env bash
# The job that launch/slurm.sh submits, on its first node: starts the trainer
# on the nodes of the first part, the refresher on those of the second, and
# puts the job back into the queue when it was stopped.
#
#   launch/slurm_job.sh PLATFORM RESTARTS VERB ARGUMENT...
set -euo pipefail
# Slurm runs a copy of this file, in the directory of sbatch.
# shellcheck source=launch/options.sh
. launch/options.sh

use_platform "$1"
restarts=$2
shift 2
export PATH="$PWD/.venv/bin:$PATH"

# step PART ARGUMENT...: realm on the nodes of a part, as one run. What JAX
# finds by itself is not used: the port that it takes is that of the job, for
# both parts, and it gives each process one of a node's devices.
step() {
  local part=$1 suffix='' group=() nodes count first
  shift
  if [ -n "${SLURM_HET_SIZE:-}" ]; then
    suffix=_HET_GROUP_$part
    group=("--het-group=$part")
  fi
  nodes=SLURM_JOB_NODELIST$suffix
  count=SLURM_JOB_NUM_NODES$suffix
  read -r first < <(scontrol show hostnames "${!nodes}")
  set -- "$@" \
    "--coordinator=$first:$((61440 + (2 * SLURM_JOB_ID + part) % 4096))" \
    "--num-processes=${!count}"
  # The processes end each other, after saving: srun is not to kill them. A
  # process is not bound to one core.
  # shellcheck disable=SC2016
  exec srun "${group[@]}" --ntasks-per-node=1 --cpu-bind=none \
    --kill-on-bad-exit=0 --label \
    bash -c 'exec realm "$@" --process-id="$SLURM_PROCID"' realm "$@"
}

# A signal to srun itself would kill its processes before they have saved.
terminate() {
  scancel --signal=TERM "$1" || true
}

follow() {
  step 1 refresh --workdir "$(workdir_of "${realm[@]}")" --follow &
  refresher=$!
}

# A job that was cancelled, or that Slurm itself puts back, is not running.
requeue() {
  local state
  trap '' TERM
  read -r state < <(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) ||
    true
  echo "slurm_job.sh: trainer $status, refresher $followed, job $state" >&2
  if [ "$state" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit 75
}

realm=("$@") stopped=''
trap 'stopped=1; terminate "$SLURM_JOB_ID"' TERM
step 0 "$@" &
trainer=$!
refresher='' followed=0 tries=0
if [ -n "${SLURM_HET_SIZE:-}" ]; then
  follow
fi

# The trainer goes on where the refresher fails; that is started again alone.
while alive "$trainer"; do
  sleep 1 || true # a signal reaches it too
  if [ -n "$refresher" ] && [ -z "$stopped" ] && ! alive "$refresher" &&
    ! wait "$refresher" && alive "$trainer" && ((tries++ < restarts)); then
    follow
  fi
done
status=0
wait "$trainer" || status=$?
if [ -n "$refresher" ]; then
  if [ "$status" -ne 0 ]; then
    terminate "$SLURM_JOB_ID_HET_GROUP_1"
  fi
  while alive "$refresher"; do
    sleep 1 || true
  done
  wait "$refresher" || followed=$?
fi

worst=$status
if [ "$status" -eq 0 ]; then
  worst=$followed
fi
if [ "$worst" -eq 75 ] || { [ -n "$stopped" ] && [ "$worst" -ne 0 ]; }; then
  requeue
elif [ "$worst" -ne 0 ] && [ "$worst" -ne 2 ] &&
  [ "${SLURM_RESTART_COUNT:-0}" -lt "$restarts" ]; then
  requeue
fi
exit "$worst"
