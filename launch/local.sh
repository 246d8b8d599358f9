#!/usr/bin/env bash
# Runs an experiment on this machine: its CPU, its GPUs, or one TPU VM. The first call installs .venv.
# usage: bash launch/local.sh [--dry-run] --config=configs/digits.py [--workdir=DIR] [--config.KEY=VALUE ...]
#   --dry-run   prints the commands and does not run them
# moco_jax/config.py lists the keys of a config.
# Exit codes: 0 done; 75 stopped by SIGTERM with the state saved, start the same command again; 130
# Ctrl-C; 2 an error that the message explains.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
take_flags "$0" "$@"
. "$root/launch/setup.sh" "" # without an argument it would read those of this script
# Memory in pages of 2 MB makes a step on a CPU about 10 % faster (benchmarks/results/step.md).
[ "$platform" != cpu ] || export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
become "$python" -m moco_jax.main ${arguments[@]+"${arguments[@]}"}
