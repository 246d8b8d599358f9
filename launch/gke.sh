#!/usr/bin/env bash
# Runs an experiment as a JobSet on TPU or GPU nodes of a GKE cluster: fills in launch/gke.yaml and
# passes it to kubectl.
#
# usage: bash launch/gke.sh --name=NAME --image=IMAGE (--bucket=B | --claim=C) NODES [OPTION ...] -- --config=configs/imagenet.py ...
#
#   --name=NAME             name of the run; the default workdir is runs/NAME in the shared folder
#   --image=IMAGE           image built from launch/Dockerfile, in a registry that the cluster can read:
#                             docker build --file launch/Dockerfile --build-arg PLATFORM=tpu --tag IMAGE .
#                             docker push IMAGE
#   --bucket=B              bucket that all pods mount with the Cloud Storage FUSE driver; or
#   --claim=C               persistent volume claim that many nodes can mount, such as Filestore's
#   NODES                   TPU: --tpu=tpu-v5-lite-podslice --topology=4x4 --chips=4 (per node)
#                           GPU: --gpu=nvidia-h100-80gb --chips=8 (per node) --hosts=2
#   --spot                  uses spot nodes
#   --service-account=NAME  Kubernetes account that may read and write the bucket; default "default"
#   --restarts=10           how often a crashed run is started again
#   --dry-run               prints the manifest and does not contact the cluster
#
# The bucket or claim is mounted at /moco_jax/shared, so images can be read from it:
# --config.data.path=shared/imagenet.tar. The cluster needs JobSet (https://jobset.sigs.k8s.io) and,
# for a bucket, the Cloud Storage FUSE driver. A bucket with a hierarchical namespace renames finished
# checkpoints in one step.
#
# A pod that receives SIGTERM saves its state and exits with 75. It is started again, and this does
# not count as a failure, but after 5 such restarts in a row without a new checkpoint the run ends
# with 2. Exit code 2, an error that the message explains, ends the run. To continue after that,
# delete the JobSet and call this script again: the run continues from its workdir.
#
# The pods of several nodes prove by a token that they belong to the run. The script puts
# $MOCO_JAX_TOKEN, or else a random one, into a Secret of the run's name.
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
    [ "$hosts" -eq 1 ] || echo "a Secret $name with the token of the run is made too; it is not printed" >&2
    return
  fi
  manifest | kubectl create --filename=-
  local kinds=jobset
  if [ "$hosts" -gt 1 ]; then
    # The pods wait for it. Created last, because a JobSet of this name may be running with its own.
    secret | kubectl apply --server-side --filename=- ||
      fail "cannot create the Secret of the run; see kubectl's message above, and remove the run: kubectl delete jobset $name"
    kinds=jobset,secret
  fi
  local first=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0
  echo "follow it with: kubectl logs --follow --tail=-1 --selector=$first --container=moco-jax"
  echo "end it with:    kubectl delete $kinds $name"
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
      *) fail "unknown option $1; --help lists the options; put the arguments of the run after --" ;;
    esac
    shift
  done
}

check() {
  local number='[1-9][0-9]{0,5}' word
  local dns='[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?' label='[a-zA-Z0-9]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9])?'
  need kubectl "install it: https://kubernetes.io/docs/tasks/tools"
  # The host name of a pod is NAME-run-0-0-xxxxx, at most 63 characters.
  check_value --name "$name" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' "a name of up to 40 lower-case letters, digits and dashes"
  [ -n "$name" ] || fail "give the run a name of up to 40 lower-case letters, digits and dashes: --name=NAME"
  [ -n "$image" ] || fail "give the image: --image=IMAGE"
  check_value --image "$image" '[a-z0-9][-a-zA-Z0-9._:/@]{0,400}' "an image such as REGISTRY/moco_jax:tpu"
  [ -n "$bucket$claim" ] || fail "give the storage that all pods share: --bucket=BUCKET or --claim=CLAIM"
  [ -z "$bucket" ] || [ -z "$claim" ] || fail "give one of --bucket and --claim, not both"
  [[ $bucket != */* ]] || fail "--bucket=$(quoted "$bucket") must be a bucket without a folder; give the folder with --workdir"
  check_value --bucket "$bucket" '[a-z0-9]([-a-z0-9._]{0,220}[a-z0-9])?' "the name of a bucket"
  check_value --claim "$claim" "$dns" "the name of a persistent volume claim"
  check_value --service-account "$account" "$dns" "the name of a Kubernetes service account"
  [ -n "$account" ] || fail "--service-account must not be empty"
  [ -n "$tpu$gpu" ] || fail "give the nodes: --tpu=... --topology=... --chips=..., or --gpu=... --chips=... --hosts=..."
  [ -z "$tpu" ] || [ -z "$gpu" ] || fail "give one of --tpu and --gpu, not both"
  check_value --tpu "$tpu" "$label" "a type of TPU such as tpu-v5-lite-podslice"
  check_value --gpu "$gpu" "$label" "a type of GPU such as nvidia-h100-80gb"
  [[ $chips =~ ^$number$ ]] || fail "give the chips or GPUs of a node, such as --chips=4; got $(quoted "$chips")"
  [[ $restarts =~ ^(0|$number)$ ]] || fail "--restarts=$(quoted "$restarts") must be a whole number"
  if [ -n "$tpu" ]; then count_hosts; fi
  [[ $hosts =~ ^$number$ ]] || fail "give the number of nodes: --hosts=2; got $(quoted "$hosts")"
  [ ${#command[@]} -gt 0 ] ||
    fail "give the arguments of the run after --, such as: -- --config=configs/imagenet.py"
  for word in "${command[@]}"; do check_text "an argument of the run" "$word"; done
  check_token
}

# Computes the number of hosts from a topology such as 4x4, which has 16 chips.
count_hosts() {
  [[ $topology =~ ^[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}$ ]] ||
    fail "give the topology, such as --topology=4x4; got $(quoted "$topology")"
  [ -z "$hosts" ] || [[ $hosts =~ ^[1-9][0-9]{0,5}$ ]] || fail "--hosts=$(quoted "$hosts") must be a whole number"
  local all=$((${topology//x/*}))
  [ $((all % chips)) -eq 0 ] || fail "--topology=$topology has $all chips, which is not a multiple of --chips=$chips"
  [ -z "$hosts" ] || [ "$hosts" -eq $((all / chips)) ] ||
    fail "--topology=$topology and --chips=$chips make $((all / chips)) nodes, not --hosts=$hosts"
  hosts=$((all / chips))
}

# Adds a workdir in the shared folder unless the arguments contain one.
find_workdir() {
  local word
  for word in "${command[@]}"; do
    case $word in --workdir | --workdir=* | -workdir | -workdir=*) return ;; esac
  done
  command+=("--workdir=shared/runs/$name")
}

# TPU pods find each other. GPU pods need the address of the first one.
find_cluster() {
  # A replacement for a preempted node may take long; the pods on the other nodes wait for it.
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
  [ "$hosts" -eq 1 ] || keep+=(token)
  while IFS= read -r line; do
    if [[ $line =~ \ #\ (tpu|gpu|spot|bucket|claim|token):$ ]]; then
      kind=${BASH_REMATCH[1]}
      [[ " ${keep[*]} " == *" $kind "* ]] || continue
      line=${line% # "$kind":}
    fi
    fill "$line"
  done < <(sed '1,/^apiVersion/{/^#/d}' "$root/launch/gke.yaml")
}

# fill LINE: prints the line with its placeholder filled in, if it has one.
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

# Prints the Secret with the token. It goes to kubectl through a pipe, never to the screen.
secret() {
  printf '{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "%s"}, "stringData": {"token": %s}}\n' \
    "$name" "$(string "$(token)")"
}

# Prints the arguments of the run as YAML strings. Kubernetes replaces $(NAME) and reads $$ as $.
strings() {
  local word separator=''
  for word in "${command[@]//\$/\$\$}" ${cluster[@]+"${cluster[@]}"}; do
    printf '%s%s' "$separator" "$(string "$word")"
    separator=', '
  done
}

# string TEXT: prints a text that check_text accepts as a string of JSON and YAML.
string() {
  local text=${1//\\/\\\\} quote='"'
  printf '"%s"' "${text//$quote/\\$quote}"
}

main "$@"
