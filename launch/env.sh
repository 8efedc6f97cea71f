# shellcheck shell=bash
# Sourced by the launchers: flags of a platform (cpu, gpu, tpu); none yet.
