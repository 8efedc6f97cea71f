# shellcheck shell=bash
# Sourced before a run: `. launch/env.sh cpu|gpu|tpu`. What JAX, XLA and malloc
# read from the environment at their start; nothing here changes a result
# beyond the order of sums. XLA ends a process at a flag that it does not know:
# all of these are known to jaxlib 0.10.2 and libtpu 0.0.42
# (tests/test_launch.py). No GPU or TPU was at hand: what the flags gain there
# is the word of the source named, not measured here.

case "${1-}" in
cpu)
  export JAX_PLATFORMS=cpu
  # Several devices on few cores (tests, local clusters) reach a collective far
  # apart when the machine is busy; XLA ends the process when one waits 40 s.
  _flags='--xla_cpu_collective_call_terminate_timeout_seconds=600'
  # XLA's CPU backend takes large buffers from malloc anew for each step. By
  # default each is mapped, cleared page by page and given back: with huge
  # pages, and memory kept, the gradient of a small BERT took 44 instead of 77
  # ms (2 layers, width 64, [128, 64] tokens, 2 cores, minimum of 25).
  export GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=10000000000:glibc.malloc.trim_threshold=10000000000
  ;;
gpu)
  # Named, so that a missing driver or wheel is an error (mesh.py) and not a run
  # on the CPU.
  export JAX_PLATFORMS=cuda,cpu
  # Starts FSDP's gathers of parameters before the products that wait for them,
  # and lets gradients' sums run beside the backward pass (JAX documentation,
  # "GPU performance tips"). Not tried.
  _flags='--xla_gpu_enable_latency_hiding_scheduler=true'
  # Layers run in one scan: only across its turns can the next layer's gather
  # and the last one's scatter run beside this one's products (the same
  # page). Not tried.
  _flags+=' --xla_gpu_enable_pipelined_all_gather=true'
  _flags+=' --xla_gpu_enable_pipelined_reduce_scatter=true'
  ;;
tpu)
  export JAX_PLATFORMS=tpu,cpu
  _flags=''
  # Collectives that start and end apart, and the work between them in one
  # fusion with their steps: the gathers of FSDP and the sums of gradients run
  # beside products. Tried ahead of time alone: compiled for v4:2x2x2 the
  # pre-training step (2 layers) has such collectives, without the flags none;
  # its temporary memory is 1.05 instead of 0.84 GB.
  LIBTPU_INIT_ARGS="--xla_enable_async_all_gather=true\
 --xla_tpu_enable_async_collective_fusion=true\
 --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true\
 --xla_tpu_enable_async_collective_fusion_multiple_steps=true\
 --xla_tpu_overlap_compute_collective_tc=true ${LIBTPU_INIT_ARGS-}"
  export LIBTPU_INIT_ARGS
  ;;
*)
  echo "error: launch/env.sh: '${1-}', choose from cpu, gpu, tpu" >&2
  return 2
  ;;
esac

# The user's own flags come last: of a flag given twice the last one counts.
export XLA_FLAGS="$_flags ${XLA_FLAGS-}"
unset _flags

# A resumed run, a refresher beside it and a second `realm ask` compile nothing
# that was compiled before (JAX keeps what took a second or more). Set to a
# bucket or a shared disk, it serves all hosts; set to nothing, it is off.
: "${JAX_COMPILATION_CACHE_DIR=${XDG_CACHE_HOME:-$HOME/.cache}/realm_jax}"
export JAX_COMPILATION_CACHE_DIR
