# shellcheck shell=bash
# Sourced by the launchers: what they share.

# Ends with bad usage.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# value OPTION [VALUE]...: the value of the option that comes first.
value() {
  [ $# -ge 2 ] || fail "$1: needs a value"
  printf '%s\n' "$2"
}

number() {
  local found
  found=$(value "$@") || exit
  [[ $found =~ ^[0-9]+$ ]] || fail "$1: $found, must be a whole number"
  printf '%s\n' "$found"
}

# Runs a command; where dry_run is set, prints it as a shell would read it.
run() {
  local line='' word quote="'\\''"
  if [ -z "$dry_run" ]; then
    "$@"
    return
  fi
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      word="'${word//\'/$quote}'"
    fi
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# The workdir among the arguments of realm: the refresher's too.
workdir_of() {
  local argument previous=
  for argument in "$@"; do
    if [ "$previous" = --workdir ]; then
      printf '%s\n' "$argument"
      return
    elif [[ $argument = --workdir=* ]]; then
      printf '%s\n' "${argument#*=}"
      return
    fi
    previous=$argument
  done
  fail '--workdir: is missing among the arguments of realm'
}

use_platform() {
  case $1 in
    cpu | gpu | tpu) ;;
    *) fail "--platform: $1, must be cpu, gpu or tpu" ;;
  esac
  # shellcheck source=launch/env.sh
  . launch/env.sh "$1"
}

# Whether a child is there; bash keeps the status of one that is not.
alive() {
  kill -0 "$1" 2>/dev/null
}
