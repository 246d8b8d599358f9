#!/usr/bin/env bash
# Checks this project on an NVIDIA GPU in less than 10 minutes: the self-check, tests in float64, the
# step against PyTorch, and other tests. It installs nothing; JAX with CUDA, torch and pytest must be
# there. benchmarks/train_gpu.sh trains on it.
# usage: bash benchmarks/accept_gpu.sh OUT [WHEELS]
#   OUT      folder for the logs, and for steps.jsonl with the speeds
#   WHEELS   folder with wheels of packages that the machine lacks, such as clu and ml_collections
# PYTHON=python3 and LIMIT=585 (seconds, for all stages) are variables of the environment.
set -uo pipefail
out=${1:?usage: bash benchmarks/accept_gpu.sh OUT [WHEELS]} wheels=${2-} failed=0
. "$(dirname "${BASH_SOURCE[0]}")/gpu.sh"

# stage NAME SECONDS COMMAND...: runs it for at most SECONDS and for what is left of the limit.
stage() {
  local name=$1 most=$2 left=$((limit - (SECONDS - begun))) start=$SECONDS code
  shift 2
  if ((left < 20)); then
    echo "== $name: not run, the time is over"
    failed=1
    return
  fi
  timeout --signal=TERM --kill-after=10 $((left < most ? left : most)) "$@" >"$out/$name.log" 2>&1
  code=$?
  echo "== $name: exit code $code, $((SECONDS - start)) s (124: it took too long)"
  grep -vE "cuda_timer|Warning|warner" "$out/$name.log" | tail -n 8
  ((code == 0)) || failed=1
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | tee "$out/machine.log"
stage check 170 "$python" -m moco_jax.check --json="$out/check.json"
# MOCO_JAX_TESTS_FAST_COMPILE= keeps the compiler's own options; highest: float32 products are
# TensorFloat-32 otherwise, and the bounds are float32's.
tests=(env MOCO_JAX_TESTS_FAST_COMPILE= XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_PLATFORMS=cuda,cpu
  JAX_DEFAULT_MATMUL_PRECISION=highest "JAX_COMPILATION_CACHE_DIR=$out/cache"
  "$python" -m pytest -p no:cacheprovider -W default --tb=short -q -n 12)
stage golden 150 "${tests[@]}" tests/golden/test_steps.py
stage imagenet 130 "$python" -m benchmarks.step --size=imagenet --batch 256 --turns=5 --steps=10 --json="$out/steps.jsonl"
stage small 90 "$python" -m benchmarks.step --size=small --batch 512 4096 --turns=5 --sides moco_jax torch --json="$out/steps.jsonl"
stage vit 150 "$python" -m benchmarks.step --size=vit --batch 256 --turns=3 --steps=5 --sides moco_jax torch --json="$out/steps.jsonl"
# Tests that need eight devices, or read the program for a CPU, fail on one GPU.
stage tests 300 "${tests[@]}" tests/models tests/data/augment tests/health tests/encoders tests/contrastive
rm -rf "$out/site" "$out/cache"
exit $failed
