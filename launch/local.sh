#!/usr/bin/env bash
# Pretrains on this machine: CPU, its GPUs, or one TPU VM. Sets itself up on the first call.
# usage: bash launch/local.sh --config=configs/digits.py [--workdir=DIR] [--config.KEY=VALUE ...]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" ""  # without an argument it would see those of this script
exec "$python" -m moco_jax.main "$@"
