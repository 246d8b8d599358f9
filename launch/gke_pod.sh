#!/usr/bin/env bash
# Runs in each pod that launch/gke.sh starts: python -m moco_jax.main with the given arguments. Exits
# with its code, but with 2 in place of 75 if restarts bring no new checkpoint: Kubernetes starts a pod
# that exits with 75 again without end.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/commands.sh"

main() {
  cd "$root"
  supervise "$@"
  [ "${JOB_COMPLETION_INDEX:-0}" = 0 ] || exit "$code" # the first pod counts for all
  local folder
  folder=$(workdir "$@")
  restarts=$folder/.restarts-${MOCO_JAX_JOB:-}
  if [ "$code" -eq 75 ]; then
    mkdir -p "$folder"
    progresses "$restarts" "$(saved_step "$@")" || give_up
  else
    rm -f "$restarts"
  fi
  exit "$code"
}

# Runs Python, passes SIGTERM on to it, and sets $code.
supervise() {
  local run='' signalled=''
  trap 'signalled=1; [ -z "${run:-}" ] || kill -TERM "$run" 2>/dev/null || true' TERM
  python -m moco_jax.main "$@" &
  run=$!
  [ -z "$signalled" ] || kill -TERM "$run" 2>/dev/null || true # it came before $run was set
  # Bash handles a signal that comes just before a `wait` after that wait: these are short.
  while kill -0 "$run" 2>/dev/null; do
    sleep 0.5 &
    wait $! || true
  done
  code=0
  wait "$run" || code=$?
}

workdir() {
  local word previous='' folder=runs
  for word in "$@"; do
    case $word in --workdir=* | -workdir=*) folder=${word#*=} ;; esac
    case $previous in --workdir | -workdir) folder=$word ;; esac
    previous=$word
  done
  echo "$folder"
}

give_up() {
  rm -f "$restarts"
  fail "the run was restarted $most_restarts times in a row and saved no new checkpoint; see the logs of the pods"
}

main "$@"
