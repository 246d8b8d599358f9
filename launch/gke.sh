#!/usr/bin/env bash
# Pretrains on nodes of a GKE cluster, TPU or GPU, as a JobSet: fills in launch/gke.yaml and hands it
# to kubectl.
#
# usage: bash launch/gke.sh --name=NAME --image=IMAGE (--bucket=B | --claim=C) NODES [OPTION ...] -- --config=configs/imagenet.py ...
#
#   --name=NAME             of the run; the default workdir is runs/NAME on the shared folder
#   --image=IMAGE           built from launch/Dockerfile, in a registry that the cluster reads:
#                             docker build --file launch/Dockerfile --build-arg PLATFORM=tpu --tag IMAGE .
#                             docker push IMAGE
#   --bucket=B              a bucket that all pods share, by the Cloud Storage FUSE driver; or
#   --claim=C               a persistent volume claim for many nodes at once, such as Filestore's
#   NODES                   TPU: --tpu=tpu-v5-lite-podslice --topology=4x4 --chips=4 (a node)
#                           GPU: --gpu=nvidia-h100-80gb --chips=8 (a node) --hosts=2
#   --spot                  on spot nodes
#   --service-account=NAME  of Kubernetes, which may read and write the bucket; default "default"
#   --restarts=10           how often a run that crashed is started again
#   --dry-run               prints the manifest, and asks no cluster
#
# What all pods share is mounted as /moco_jax/shared, so images may be read from it:
# --config.data.path=shared/imagenet.tar. The cluster needs JobSet (https://jobset.sigs.k8s.io) and,
# for a bucket, the Cloud Storage FUSE driver; a bucket with a hierarchical namespace renames
# finished checkpoints in one step.
#
# A pod that is told to end (SIGTERM) saves and exits with 75: it is started again, and this counts
# as no failure. The code 2, a problem that the message names, ends the run. To go on after that,
# delete the JobSet and call this again: the run continues from its workdir.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/commands.sh"

name='' image='' bucket='' claim='' tpu='' gpu='' topology='' chips='' hosts=''
spot='' account=default restarts=10
command=()

main() {
  parse "$@"
  check
  find_workdir
  find_cluster
  if [ -n "$dry_run" ]; then
    manifest
    return
  fi
  manifest | kubectl create --filename=-
  local first=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0
  echo "follow it by: kubectl logs --follow --tail=-1 --selector=$first --container=moco-jax"
  echo "end it by:    kubectl delete jobset $name"
}

parse() {
  take_flags "$0" "$@"
  set -- ${arguments[@]+"${arguments[@]}"}
  while [ $# -gt 0 ]; do
    case $1 in
      --name=*) name=${1#*=} ;;
      --image=*) image=${1#*=} ;;
      --bucket=*) bucket=${1#*=}; bucket=${bucket#gs://} ;;
      --claim=*) claim=${1#*=} ;;
      --tpu=*) tpu=${1#*=} ;;
      --gpu=*) gpu=${1#*=} ;;
      --topology=*) topology=${1#*=} ;;
      --chips=*) chips=${1#*=} ;;
      --hosts=*) hosts=${1#*=} ;;
      --spot) spot=1 ;;
      --service-account=*) account=${1#*=} ;;
      --restarts=*) restarts=${1#*=} ;;
      --) command=("${@:2}"); break ;;
      *) fail "unknown option $1 (the arguments of the run stand behind --; --help lists the options)" ;;
    esac
    shift
  done
}

check() {
  need kubectl "install it: https://kubernetes.io/docs/tasks/tools"
  # A pod's host name is NAME-run-0-0-xxxxx, and 63 letters at most.
  [[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "give the run a name of up to 40 small letters, digits and dashes: --name=NAME; got '$name'"
  [ -n "$image" ] || fail "give the image: --image=IMAGE"
  [ -n "$bucket$claim" ] || fail "give what all pods share: --bucket=BUCKET or --claim=CLAIM"
  [ -z "$bucket" ] || [ -z "$claim" ] || fail "give one of --bucket and --claim, not both"
  [[ $bucket != */* ]] || fail "--bucket=$bucket: a bucket only; name a folder of it by --workdir"
  [ -n "$tpu$gpu" ] || fail "give the nodes: --tpu=... --topology=... --chips=..., or --gpu=... --chips=... --hosts=..."
  [ -z "$tpu" ] || [ -z "$gpu" ] || fail "give one of --tpu and --gpu, not both"
  [[ $chips =~ ^[1-9][0-9]*$ ]] || fail "give the chips or GPUs of a node, such as --chips=4; got '$chips'"
  [[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts=$restarts is no number"
  if [ -n "$tpu" ]; then count_hosts; fi
  [[ $hosts =~ ^[1-9][0-9]*$ ]] || fail "give the number of nodes: --hosts=2; got '$hosts'"
  [ ${#command[@]} -gt 0 ] ||
    fail "give the run's arguments behind --, such as: -- --config=configs/imagenet.py"
  [[ ${command[*]} != *$'\n'* ]] || fail "an argument with a line break can't be handed on"
}

# A topology such as 4x4 tells the chips of a slice.
count_hosts() {
  [[ $topology =~ ^[0-9]+(x[0-9]+)+$ ]] || fail "give the topology, such as --topology=4x4; got '$topology'"
  local all=$((${topology//x/*}))
  [ $((all % chips)) -eq 0 ] || fail "--topology=$topology has $all chips, no multiple of --chips=$chips"
  [ -z "$hosts" ] || [ "$hosts" -eq $((all / chips)) ] ||
    fail "--topology=$topology and --chips=$chips make $((all / chips)) nodes, not --hosts=$hosts"
  hosts=$((all / chips))
}

# Adds a workdir on the shared folder, unless the arguments name one.
find_workdir() {
  local word
  for word in "${command[@]}"; do
    case $word in --workdir | --workdir=*) return ;; esac
  done
  command+=("--workdir=shared/runs/$name")
}

# TPU pods find each other by themselves; GPU pods are told where the first one is.
find_cluster() {
  # A node that replaces one taken away may be long in coming; the pods on the others wait for it.
  cluster=(--join_timeout=1800)
  if [ -n "$gpu" ] && [ "$hosts" -gt 1 ]; then
    cluster+=("--coordinator=$name-run-0-0.$name:55527" "--processes=$hosts" "--process=\$(JOB_COMPLETION_INDEX)")
  fi
}

manifest() {
  local keep=() kind line
  [ -z "$tpu" ] || keep+=(tpu)
  [ -z "$gpu" ] || keep+=(gpu)
  [ -z "$spot" ] || keep+=(spot)
  [ -z "$bucket" ] || keep+=(bucket)
  [ -z "$claim" ] || keep+=(claim)
  while IFS= read -r line; do
    if [[ $line =~ \ #\ (tpu|gpu|spot|bucket|claim):$ ]]; then
      kind=${BASH_REMATCH[1]}
      [[ " ${keep[*]} " == *" $kind "* ]] || continue
      line=${line% # "$kind":}
    fi
    fill "$line"
  done < <(sed '1,/^apiVersion/{/^#/d}' "$root/launch/gke.yaml")
}

# fill LINE: prints it with its placeholder filled in, if it has one.
fill() {
  local value
  if [[ ! $1 =~ @([A-Z_]+)@ ]]; then
    printf '%s\n' "$1"
    return
  fi
  case ${BASH_REMATCH[1]} in
    NAME) value=$name ;;
    IMAGE) value=$image ;;
    BUCKET) value=$bucket ;;
    CLAIM) value=$claim ;;
    ACCELERATOR) value=$tpu$gpu ;;
    TOPOLOGY) value=$topology ;;
    CHIPS) value=$chips ;;
    HOSTS) value=$hosts ;;
    RESTARTS) value=$restarts ;;
    SERVICE_ACCOUNT) value=$account ;;
    ARGUMENTS) value=$(strings) ;;
  esac
  printf '%s\n' "${1%%@*}$value${1##*@}"
}

# Prints the run's arguments as YAML strings. Kubernetes replaces $(NAME) in them and reads $$ as $.
strings() {
  local word separator='' quote='"'
  for word in "${command[@]//\$/\$\$}" ${cluster[@]+"${cluster[@]}"}; do
    word=${word//\\/\\\\}
    printf '%s"%s"' "$separator" "${word//$quote/\\$quote}"
    separator=', '
  done
}

main "$@"
