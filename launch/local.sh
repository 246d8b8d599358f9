#!/usr/bin/env bash
# Pretrains on this machine: CPU, its GPUs, or one TPU VM. Sets itself up on the first call.
# usage: bash launch/local.sh [--dry-run] --config=configs/digits.py [--workdir=DIR] [--config.KEY=VALUE ...]
#   --dry-run   prints the commands, and runs none
# The keys of a config are listed in moco_jax/config.py. Exit codes: 0 done; 75 stopped by SIGTERM
# with its state saved, start the same command again; 130 Ctrl-C; 2 a problem that the message names.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
take_flags "$0" "$@"
. "$root/launch/setup.sh" "" # without an argument it would see those of this script
# Memory in pages of 2 MB: a step on a CPU is a tenth faster (benchmarks/RESULTS.md).
[ "$platform" != cpu ] || export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
become "$python" -m moco_jax.main ${arguments[@]+"${arguments[@]}"}
