#!/usr/bin/env bash
# Trains on one NVIDIA GPU: digits, then CIFAR-10 by the official recipe (200 epochs) with its linear
# protocol. It stops in time; the same command continues. It installs nothing.
# usage: bash benchmarks/train_gpu.sh OUT CIFAR10 [WHEELS]
#   OUT       folder for the workdirs and logs; the next call must get the same folder
#   CIFAR10   archive or folder of CIFAR-10 with train/ and test/, or "" for TFDS
#   WHEELS    folder with wheels of packages that the machine lacks, such as clu and ml_collections
# PYTHON=python3 and LIMIT=585 (seconds, for this call) are variables of the environment.
# Exit codes: 0 all is done; 75 stopped in time, start the same command again; else an error.
set -uo pipefail
use='usage: bash benchmarks/train_gpu.sh OUT CIFAR10 [WHEELS]'
out=${1:?$use} images=${2?$use} wheels=${3-}
[ -z "$images" ] || images=$(realpath "$images")
. "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"

# train NAME FLAG...: continues a run in $out/NAME until the limit; a run that is done stays as it is.
train() {
  local name=$1 left=$((limit - (SECONDS - begun))) start=$SECONDS code
  shift
  ((left > 80)) || exit 75
  # 60 s to save; a run that ends in time, after the signal too, keeps its own exit code.
  timeout --signal=TERM --preserve-status --kill-after=60 "$((left - 60))" "$python" -m moco_jax.main --workdir="$out/$name" "$@" >>"$out/$name.log" 2>&1
  code=$?
  echo "== $name: exit code $code, $((SECONDS - start)) s"
  tail -n 8 "$out/$name.log"
  case $code in
    0) ;;
    75) exit 75 ;;
    *) exit "$code" ;;
  esac
}

data=(${images:+--config.data.path="$images"})
train digits --config=configs/digits.py
train cifar10 --config=configs/cifar10.py --config.dtype=bfloat16 ${data[@]+"${data[@]}"}
train cifar10_linear --config=configs/cifar10_linear.py --config.pretrained="$out/cifar10" ${data[@]+"${data[@]}"}
rm -rf "$out/site"
