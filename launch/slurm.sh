#!/usr/bin/env bash
# Submits one heterogeneous Slurm job: nodes that train and nodes that build
# the index; see slurm.md.
#
#   bash launch/slurm.sh [--trainer OPTIONS] [--refresher OPTIONS]
#     [--restarts N] [--platform P] [--dry-run] -- VERB ARGUMENT...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/options.sh
. launch/options.sh

trainer=--nodes=1 refresher=--nodes=1 restarts=3 platform=gpu dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --trainer) trainer=$(value "$@"); shift 2 ;;
    --refresher) refresher=$(value "$@"); shift 2 ;;
    --restarts) restarts=$(number "$@"); shift 2 ;;
    --platform) platform=$(value "$@"); shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    --) shift; break ;;
    *) fail "$1: unknown; see launch/slurm.md" ;;
  esac
done
[ $# -gt 0 ] || fail 'a verb of realm is needed after --'
workdir_of "$@" >/dev/null
use_platform "$platform"

# The signal comes to the job's script two minutes before the time limit; one
# process a node has all of its devices.
part=(--job-name=realm --requeue --open-mode=append --signal=B:TERM@120
  --ntasks-per-node=1)
read -ra trainer <<<"$trainer"
read -ra refresher <<<"$refresher"
parts=("${part[@]}" "${trainer[@]}")
if [ ${#refresher[@]} -gt 0 ]; then
  parts+=(: "${part[@]}" "${refresher[@]}")
fi
run sbatch "${parts[@]}" launch/slurm_job.sh "$platform" "$restarts" "$@"
