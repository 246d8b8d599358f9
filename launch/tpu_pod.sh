#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU slice of one or more hosts. Creates the slice and waits until it is
# active, or uses the existing one of that name; copies this checkout to its hosts and installs it;
# starts the command on all hosts; shows the output of the first host; copies the workdir back.
#
# usage: bash launch/tpu_pod.sh --name=NAME --project=PROJECT --zone=ZONE [OPTION ...] -- --config=configs/imagenet.py ...
#
#   --name=NAME               name of the slice; the slice is kept and reused until --delete
#   --project=, --zone=       place; default $CLOUDSDK_CORE_PROJECT and $CLOUDSDK_COMPUTE_ZONE
#   --accelerator-type=TYPE   such as v5litepod-16, v6e-64 or v4-32; required for a new slice
#   --runtime-version=IMAGE   image of the hosts; default the one for JAX on that type
#   --create=FLAG             additional flag for gcloud's queued-resources create, such as
#                             --create=--reserved; may be repeated
#   --spot                    uses a cheaper slice that may be preempted at any time. The script then
#                             deletes it, creates a new one and continues from the checkpoint
#   --restarts=10             maximum number of new slices
#   --bucket=gs://B[/FOLDER]  bucket that all hosts mount as shared/; runs/ is in it
#   --nfs=SERVER:/FOLDER      the same with NFS, such as a Filestore share
#   --delete                  deletes the slice at the end; without a command, deletes it now
#   --stop                    sends SIGTERM to a running command, which saves and stops; nothing else
#   --poll=30                 seconds between two checks of the slice
#   --dry-run                 prints the commands for a new slice and does not run them
#
# The workdir. Every host writes its part of a checkpoint and reads all parts when it resumes. So a
# slice of several hosts needs a folder that all hosts share: --bucket or --nfs. A --spot slice needs
# one too because its disks are deleted with it. The default workdir runs/<config name> is then in the
# shared folder and stays there. The service account of the slice must be allowed to read and write
# the bucket. A bucket with a hierarchical namespace renames finished checkpoints in one step. Images
# can be in the shared folder too: --config.data.path=shared/imagenet.tar. An absolute --workdir must
# be a folder that all hosts share. Without a shared folder the workdir is on the host's disk and is
# copied to this machine at the end.
#
# The run does not depend on this machine: it continues after Ctrl-C or a lost connection, and the
# same command shows its output again.
#
# exit codes: those of the run: 0 done; 75 stopped with the state saved, start the same command again;
# 2 an error of the run or of this script that the message explains; anything else a crash.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/commands.sh"

name='' project=${CLOUDSDK_CORE_PROJECT:-} zone=${CLOUDSDK_COMPUTE_ZONE:-}
type='' image='' spot='' restarts=10 shared='' delete='' stop='' poll=30
create=(--quiet)
command=()

main() {
  parse "$@"
  check
  if [ -n "$stop" ]; then
    on all "$worker stop 300"
    exit
  fi
  open_work
  if [ ${#command[@]} -gt 0 ]; then
    trap 'say "the run continues; the same command shows it again, --stop saves and stops it"; exit 130' INT
    until_done
    [ "$code" -ne 255 ] || exit "$code"
    bring_back
  fi
  [ -z "$delete" ] || delete_slice
  exit "$code"
}

# Makes $work, a folder for temporary files that only this user can read. Every end removes it.
# shellcheck disable=SC2016 # a dry run prints commands
open_work() {
  if [ -n "$dry_run" ]; then
    work=@WORK@
    [ ${#command[@]} -eq 0 ] ||
      printf '%s\n' 'work=$(mktemp -d "${TMPDIR:-/tmp}/moco_jax.XXXXXXXX")' "trap 'rm -rf \"\$work\"' EXIT"
  else
    work=$(mktemp -d "${TMPDIR:-/tmp}/moco_jax.XXXXXXXX")
    trap 'rm -rf "$work"' EXIT
  fi
}

parse() {
  take_flags "$0" "$@"
  set -- ${arguments[@]+"${arguments[@]}"}
  while [ $# -gt 0 ]; do
    case $1 in
      --name=*) name=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --accelerator-type=*) type=${1#*=} ;;
      --runtime-version=*) image=${1#*=} ;;
      --create=*) create+=("${1#*=}") ;;
      --spot) spot=1 ;;
      --restarts=*) restarts=${1#*=} ;;
      --bucket=gs://?*) shared=${1#*=} ;;
      --nfs=?*:/*) shared=${1#*=} ;;
      --delete) delete=1 ;;
      --stop) stop=1 ;;
      --poll=*) poll=${1#*=} ;;
      --) command=("${@:2}"); break ;;
      --bucket=* | --nfs=*) fail "$1 is not valid; give --bucket=gs://BUCKET or --nfs=SERVER:/FOLDER" ;;
      *) fail "unknown option $1; --help lists the options; put the arguments of the run after --" ;;
    esac
    shift
  done
}

# Checks everything that can be checked before the run costs time and money.
check() {
  need gcloud "install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
  [ -n "$name" ] || fail "give the slice a name: --name=NAME"
  [ -n "$project" ] || fail "give the project: --project=PROJECT"
  [ -n "$zone" ] || fail "give the zone: --zone=ZONE"
  check_values
  [ ${#command[@]} -gt 0 ] || [ -n "$delete$stop" ] ||
    fail "give the arguments of the run after --, such as: -- --config=configs/imagenet.py"
  find_workdir
  [ -n "$shared" ] || [[ $workdir == /* ]] || { check_copied && check_own_disk; }
  [ -z "$shared" ] || [[ $workdir =~ ^(/|(runs|shared)(/|$)) ]] ||
    fail "--workdir=$workdir is not in the shared folder; give runs/..., shared/... or an absolute path"
}

# Nothing of these may be read as an option of gcloud or as a command of a shell.
check_values() {
  local letters='[-a-zA-Z0-9._]' label='[a-z]([-a-z0-9]{0,61}[a-z0-9])?' word
  check_value --name "$name" "$label" "up to 63 lower-case letters, digits and dashes"
  check_value --project "$project" '[a-z0-9]([-a-z0-9.:]{0,98}[a-z0-9])?' "the id of a project"
  check_value --zone "$zone" "$label" "a zone such as us-west4-a"
  check_value --accelerator-type "$type" "[a-zA-Z0-9]$letters{0,62}" "a type such as v5litepod-16"
  check_value --runtime-version "$image" "[a-zA-Z0-9]$letters{0,99}" "a version such as v2-alpha-tpuv5"
  check_value --restarts "$restarts" '0|[1-9][0-9]{0,5}' "a whole number"
  check_value --poll "$poll" '0|[1-9][0-9]{0,5}' "a whole number of seconds"
  [ -n "$restarts" ] && [ -n "$poll" ] || fail "--restarts and --poll must be whole numbers"
  case $shared in
    gs://*) check_value --bucket "$shared" "gs://[a-z0-9]$letters*(/[-a-zA-Z0-9._=+]+)*/?" "gs://BUCKET[/FOLDER]" ;;
    *) check_value --nfs "$shared" "[a-zA-Z0-9]$letters*:(/[-a-zA-Z0-9._=+]+)*/?" "SERVER:/FOLDER" ;;
  esac
  [[ ! $shared/ =~ /\.\.?/ ]] || fail "--bucket and --nfs must not contain . or .. as a folder"
  for word in "${create[@]}"; do
    check_value --create "$word" '--[a-z][-a-z0-9]*(=.*)?' "an option of gcloud, such as --create=--reserved"
    check_text --create "$word"
  done
  for word in ${command[@]+"${command[@]}"}; do check_text "an argument of the run" "$word"; done
  check_token
}

# Sets $workdir from the run's arguments.
find_workdir() {
  local previous='' word
  workdir=runs
  for word in ${command[@]+"${command[@]}"}; do
    case $word in --workdir=* | -workdir=*) workdir=${word#*=} ;; esac
    case $previous in --workdir | -workdir) workdir=$word ;; esac
    previous=$word
  done
}

# A path that scp copies is read by the shell of the host.
check_copied() {
  local LC_ALL=C
  [[ $workdir =~ ^[a-zA-Z0-9_][-a-zA-Z0-9._=+/]*$ && ! $workdir/ =~ /\.\.?/ ]] ||
    fail "--workdir=$(quoted "$workdir") is copied back, so it must be a folder of letters, digits and -._=+/"
}

# Every type has at most 8 chips or cores a host, so a larger number means several hosts.
check_own_disk() {
  [ -z "$spot" ] || fail "the disks of a spot slice are deleted with it; give --bucket=gs://... or --nfs=..."
  [[ ! $type =~ -([0-9]+)$ ]] || [ "${BASH_REMATCH[1]}" -le 8 ] ||
    fail "the hosts of $type must share the workdir; give --bucket=gs://... or --nfs=..."
}

# Runs the command, with --spot on one slice after another; sets $code.
until_done() {
  local left=$restarts
  until attempt; do
    [ "$left" -gt 0 ] || fail "$why; gave up after $restarts restarts (--restarts)"
    left=$((left - 1))
    say "$why; creating a new slice ($left restarts left)"
    delete_slice
  done
}

# Runs the command on one slice and sets $code. Returns 1 and sets $why if the command must continue on
# a new slice. bash's set -e does not apply here, so each failure is handled where it may occur.
attempt() {
  code=0 stopped=''
  acquire || return 1
  { count_hosts && start; } || code=$?
  [ "$code" -ne 0 ] || follow
  [ -n "$spot" ] && [ -z "$stopped" ] || return 0
  case $code in
    0 | 2) return 0 ;; # after 2 the same command would fail again
    75) why="the run saved its state and asked to be started again"; return 1 ;;
    *) ! lost ;; # a preemption looks like a crash at first, because hosts stop one after another
  esac
}

# Waits until the slice is active, and creates it if it does not exist. Sets $found if it exists.
# Returns 1 if a spot slice must be replaced.
acquire() {
  found=''
  look || fail "cannot read the state of $name; see gcloud's message above"
  if [ "$state" = ABSENT ]; then
    [ -n "$type" ] || fail "there is no slice $name; to create it, give --accelerator-type=TYPE"
    create_slice || fail "cannot create the slice; see gcloud's message above"
    look || true
  else
    found=1
    say "$name exists: $state"
  fi
  while [ "$state" != ACTIVE ]; do
    case $state in
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        why="the slice is $state"
        [ -z "$spot" ] || return 1
        fail "$name is $state; --delete removes it, 'gcloud compute tpus queued-resources describe $name --project=$project --zone=$zone' prints the reason"
        ;;
    esac
    say "$name is $state; checking again in $poll s"
    sleep "$poll"
    look || true
  done
}

create_slice() {
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="${image:-$(default_image)}" ${spot:+--spot} "${create[@]}" || return
  imagined=ACTIVE
}

default_image() {
  case $type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

delete_slice() {
  tpus queued-resources delete "$name" --force --quiet
  imagined=ABSENT
}

# Sets $state to the state of the queued resource, or ABSENT; a dry run assumes the expected state.
# Returns 1 and leaves $state unchanged if gcloud fails.
imagined=ABSENT state=UNKNOWN
look() {
  local answer problem=$work/problem
  if [ -n "$dry_run" ]; then
    tpus queued-resources describe "$name" --format='value(state.state)'
    state=$imagined
  elif answer=$(tpus queued-resources describe "$name" --format='value(state.state)' 2>"$problem"); then
    state=$answer
  elif grep -q NOT_FOUND "$problem"; then
    state=ABSENT
  else
    cat "$problem" >&2
    return 1
  fi
}

# Refuses several hosts without a shared workdir if no type was given from which to know their number.
count_hosts() {
  local hosts
  [ -z "$type" ] && [ -z "$shared" ] && [[ $workdir != /* ]] || return 0
  hosts=$(tpus tpu-vm describe "$name" --format='value(networkEndpoints.len())') || return
  [ "$hosts" -eq 1 ] ||
    fail "the $hosts hosts of $name must share the workdir; give --bucket=gs://... or --nfs=..."
}

# Starts the command on all hosts unless it is already running.
start() {
  if ! { [ -n "$found" ] && on 0 "test -f moco_jax/launch/tpu_worker.sh && $worker running"; }; then
    install || return
  fi
  on all "$worker start $(quoted "${command[@]}")"
}

# Copies this checkout to the hosts, with the token by which they prove that they belong to the run.
# The token is in a file of the user's own: other users can see the arguments of a command.
install() {
  # shellcheck disable=SC2016
  if [ -n "$dry_run" ]; then copy_checkout | sed 's|@WORK@|"$work"|g'; else copy_checkout; fi
}

copy_checkout() {
  local archive=$work/moco_jax.tar.gz
  local unpack="tar --extract --file=moco_jax.tar.gz --directory=moco_jax && rm -f moco_jax.tar.gz"
  write_token &&
    (umask 077 && run tar --create --gzip --file="$archive" --exclude-from="$root/.dockerignore" \
      --directory="$root" . --directory="$work" .moco_jax_token) &&
    tpus tpu-vm scp "$archive" "$name:moco_jax.tar.gz" --worker=all --quiet &&
    on all "mkdir -p moco_jax && $unpack && $worker prepare${shared:+ $(quoted "$shared")}"
}

# shellcheck disable=SC2016 # likewise
write_token() {
  if [ -n "$dry_run" ]; then
    printf '%s\n' '(umask 077; openssl rand -hex 16 >"$work/.moco_jax_token")'
  else
    (umask 077 && token >"$work/.moco_jax_token")
  fi
}

# Shows the output of the first host until the run ends; sets $code, and $stopped if --stop ended it.
# ssh itself exits with 255.
follow() {
  local tries
  for tries in 1 2 3 4 5 6 7 8 9 10; do
    code=0
    on 0 "$worker follow" || code=$?
    if [ "$code" -ne 255 ]; then
      ask_all
      return
    fi
    ! lost || return
    say "the connection broke; reconnecting in $poll s ($tries)"
    sleep "$poll"
  done
  say "no connection to the first host; the run may still be running. The same command tries again"
}

# Sets $code from the exit codes of all hosts, because the first host often fails only after another
# one did. Code 2 takes precedence over 75, and 75 over a crash.
ask_all() {
  local answers codes
  answers=$(on all "$worker finish 60") || true
  [ -z "$dry_run" ] || printf '%s\n' "$answers"
  ! grep -qx stopped <<<"$answers" || stopped=1
  codes=" $(sed -n 's/^exit //p' <<<"$answers" | sort -u | tr '\n' ' ')"
  case $codes in
    *' 2 '*) code=2 ;;
    *' 75 '*) code=75 ;;
    *) [ "$code" -ne 0 ] || code=$(tr ' ' '\n' <<<"$codes" | grep -vx -e 0 -e '' | head -1) || code=0 ;;
  esac
  [ "$code" -eq 0 ] || say "the run ended with code $code (all hosts:$codes)"
}

# Returns 0 if a spot slice is no longer active. Checks several times: the state changes with a delay.
lost() {
  local _
  [ -n "$spot" ] || return 1
  for _ in 1 2 3 4; do
    look || true
    why="the slice is $state"
    [ "$state" = ACTIVE ] || return 0
    sleep "$poll"
  done
  return 1
}

bring_back() {
  local into
  if [[ $workdir == /* ]]; then
    say "the workdir is $workdir on the hosts"
  elif [ -n "$shared" ]; then
    say "the workdir is in $shared/${workdir#shared/}"
  else
    into=$(dirname "$root/$workdir")
    run mkdir -p "$into"
    tpus tpu-vm scp --recurse "$name:moco_jax/$workdir" "$into" --worker=0 --quiet
  fi
}

# on WORKER COMMAND: runs the command on one host of the slice, or on all.
worker="bash moco_jax/launch/tpu_worker.sh"
on() {
  tpus tpu-vm ssh "$name" --worker="$1" --quiet --command="$2"
}

tpus() {
  run gcloud compute tpus "$@" --project="$project" --zone="$zone"
}

say() {
  echo "$*" >&2
}

code=0
main "$@"
