#!/usr/bin/env bash
# launch/tpu_pod.sh calls this script over ssh on each host of a TPU slice. The run is detached from the
# connection that starts it, because gcloud repeats a command whose connection broke. This must neither
# end the run nor start it twice.
# usage: bash launch/tpu_worker.sh COMMAND, one of
#   prepare [gs://BUCKET[/FOLDER] | SERVER:/FOLDER]   installs; mounts the shared folder at shared/
#   start ARGUMENT...   starts python -m moco_jax.main ARGUMENT..., unless it is already running
#   running             exits with 0 if the run is running
#   follow              prints the output of the run until it ends, and exits with its code
#   finish SECONDS      waits that long for the end of the run, then kills it; prints "exit CODE"
#   stop SECONDS        sends SIGTERM, so that the run saves and ends; prints "exit CODE" and "stopped"
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
state=$HOME/.moco_jax_run # files: command, holder and main (process ids), log, code, stopped, shared
shared=$root/shared

main() {
  mkdir -p "$state"
  case ${1:-} in
    prepare) prepare "${2:-}" ;;
    start) start "${@:2}" ;;
    hold) hold "${@:2}" ;;
    running) running ;;
    follow) follow ;;
    finish) finish "$2" ;;
    stop) stop "$2" ;;
    *) usage "$0" >&2; exit 2 ;;
  esac
}

prepare() {
  [ -x "$root/.venv/bin/python" ] || have_python
  [ -z "$1" ] || mount_shared "$1"
  . "$root/launch/setup.sh" ""
}

# Some TPU images have Python 3.10, which is too old.
have_python() {
  python3 -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  python3 -m uv python install --quiet 3.12
  PYTHON=$(python3 -m uv python find 3.12)
  export PYTHON
}

# The default workdir is in runs/, so runs/ is placed in the shared folder too.
mount_shared() {
  mkdir -p "$shared"
  if mountpoint -q "$shared"; then
    [ "$(cat "$state/shared")" != "$1" ] || return 0
    sudo umount "$shared"
  fi
  case $1 in
    gs://*) mount_bucket "${1#gs://}" ;;
    *) mount_nfs "$1" ;;
  esac
  echo "$1" >"$state/shared"
  mkdir -p "$shared/runs"
  [ -L "$root/runs" ] || ln -s shared/runs "$root/runs" # fails if runs/ is a folder: a link would hide its runs
}

# Without --rename-dir-limit gcsfuse cannot rename a folder, and a rename completes a checkpoint.
# Metadata is not cached, so that each host sees at once what another host writes.
mount_bucket() {
  local bucket=${1%%/*} folder=${1#*/}
  [ "$folder" != "$1" ] || folder=
  command -v gcsfuse >/dev/null || install_gcsfuse
  gcsfuse --implicit-dirs --rename-dir-limit=1000000 \
    --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    ${folder:+"--only-dir=$folder"} "$bucket" "$shared"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc source=https://packages.cloud.google.com/apt
  curl -fsS "$source/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  install_package gcsfuse
}

mount_nfs() {
  command -v mount.nfs >/dev/null || install_package nfs-common
  sudo mount -t nfs "$1" "$shared"
  [ -w "$shared" ] || sudo chmod 1777 "$shared" # a new NFS share belongs to root
}

# The automatic updates of a new machine hold the lock for a while.
install_package() {
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq update
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq install -y "$1" >/dev/null
}

start() {
  local command
  command=$(quoted "$@")
  if running; then
    [ "$(cat "$state/command")" = "$command" ] ||
      fail "another command is running here: $(cat "$state/command"); --stop saves and stops it"
    return
  fi
  . "$root/launch/setup.sh" ""
  rm -f "$state"/{holder,main,code,stopped}
  echo "$command" >"$state/command"
  cd "$root"
  read_token
  python=$python setsid bash launch/tpu_worker.sh hold "$@" </dev/null >"$state/log" 2>&1 &
  until [ -s "$state/main" ]; do sleep 0.05; done
}

# tpu_pod.sh brings the file with the checkout.
read_token() {
  [ -s "$root/.moco_jax_token" ] || return 0
  MOCO_JAX_TOKEN=$(cat "$root/.moco_jax_token")
  export MOCO_JAX_TOKEN
}

hold() {
  local code=0
  echo $$ >"$state/holder"
  "$python" -m moco_jax.main "$@" &
  echo $! >"$state/main"
  wait $! || code=$?
  echo "$code" >"$state/code"
}

running() {
  [ -s "$state/holder" ] && [ ! -s "$state/code" ] && kill -0 "$(cat "$state/holder")" 2>/dev/null
}

follow() {
  [ -s "$state/holder" ] || fail "no run was started on this host"
  while running; do sleep 0.1; done &
  tail --lines=200 --follow --sleep-interval=0.1 --pid=$! "$state/log" # ends after that loop
  code
  exit "$code"
}

# Sets $code; without a file the run was killed together with the process that writes the file.
code() {
  code=137
  [ ! -s "$state/code" ] || code=$(cat "$state/code")
}

finish() {
  wait_for_end "$1"
  if running; then
    echo "$(hostname): still running $1 seconds after the first host ended; killed" >&2
    kill -KILL "$(cat "$state/main")"
    wait_for_end 10
  fi
  code
  case $code in
    0 | 75) ;;
    *) { echo "the last lines of $(hostname):"; tail --lines=20 "$state/log"; } >&2 ;;
  esac
  echo "exit $code"
  [ ! -f "$state/stopped" ] || echo stopped
}

stop() {
  running || fail "no run is running on this host"
  touch "$state/stopped"
  kill -TERM "$(cat "$state/main")"
  finish "$1"
}

wait_for_end() {
  local _
  for _ in $(seq "$((10 * $1))"); do
    running || return 0
    sleep 0.1
  done
}

main "$@"
