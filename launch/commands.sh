# Functions for --help, --dry-run and error messages. All scripts source this file.
# Sets $root, the folder of the checkout. Works with the bash 3.2 of macOS.

# shellcheck disable=SC2034 # root and arguments are used by the scripts
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=

# usage SCRIPT: prints the comment at the top of the script.
usage() {
  awk 'NR == 1 || /^#SBATCH/ { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$1"
}

# fail MESSAGE: exits with 2: the same command would fail again.
fail() {
  echo "error: $1" >&2
  exit 2
}

# need PROGRAM ADVICE: fails if the program is not installed; a dry run does not need it.
need() {
  [ -n "$dry_run" ] || command -v "$1" >/dev/null || fail "$1 is not on PATH; $2"
}

# take_flags SCRIPT ARGUMENT...: handles --help and --dry-run anywhere before a --, and puts the
# other arguments into $arguments.
take_flags() {
  local script=$1
  shift
  arguments=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
      --dry-run) dry_run=1 ;;
      -h | --help) usage "$script"; exit 0 ;;
      *) arguments+=("$1") ;;
    esac
    shift
  done
  [ $# -eq 0 ] || arguments+=("$@")
}

# quoted WORD...: prints the words quoted, so that a shell reads the same words.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

# run COMMAND...: runs the command; a dry run prints it.
run() {
  if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi
}

# become COMMAND...: like run, but replaces the script, so that signals reach the command.
become() {
  if [ -n "$dry_run" ]; then quoted "$@"; else exec "$@"; fi
}

# check_value OPTION VALUE PATTERN WHAT: fails unless the value, which may be empty, matches the pattern.
check_value() {
  local LC_ALL=C # ranges of letters are those of ASCII
  [ -z "$2" ] || [[ $2 =~ ^($3)$ ]] || fail "$1=$(quoted "$2") must be $4"
}

# check_text WHAT VALUE: fails unless the value is UTF-8 on one line, without control characters.
check_text() {
  local LC_ALL=C
  case $2 in
    *[$'\001'-$'\037\177']* | *$'\302'[$'\200'-$'\237']* | *$'\342\200'[$'\250\251']* | *$'\357\273\277'* | *$'\357\277'[$'\276\277']*)
      fail "$1 must not contain a line break or a control character; got $(quoted "$2")"
      ;;
  esac
  printf %s "$2" | iconv -f UTF-8 -t UTF-8 >/dev/null 2>&1 ||
    fail "$1 must be UTF-8; got $(quoted "$2")"
}

# check_token: fails if $MOCO_JAX_TOKEN is set to something unsuitable. No script prints its value.
check_token() {
  local LC_ALL=C
  [ -z "${MOCO_JAX_TOKEN+set}" ] || [[ $MOCO_JAX_TOKEN =~ ^[!-~]{16,200}$ ]] ||
    fail "MOCO_JAX_TOKEN has ${#MOCO_JAX_TOKEN} characters; it must have 16 to 200 letters, digits or signs; without it the script makes one"
}

# token: prints the secret of a run: $MOCO_JAX_TOKEN, or else 32 random hexadecimal digits.
token() {
  printf %s "${MOCO_JAX_TOKEN-$(head -c 16 /dev/urandom | od -An -v -tx1 | tr -d ' \n')}"
}

# saved_step ARGUMENT...: prints the latest step saved in the workdir of a run with these arguments,
# plus that of its baseline; if they name no workdir, the sum over the folders in runs/. It grows with
# each new checkpoint.
saved_step() {
  local word previous='' place folder path name latest sum=0
  local places=(runs/*)
  for word in "$@"; do
    case $word in --workdir=* | -workdir=*) places=("${word#*=}") ;; esac
    case $previous in --workdir | -workdir) places=("$word") ;; esac
    previous=$word
  done
  for place in "${places[@]}"; do
    for folder in "$place"/checkpoints "$place"/from_scratch/checkpoints; do
      latest=0
      for path in "$folder"/*; do
        name=${path##*/}
        [[ $name =~ ^[1-9][0-9]{0,14}$ ]] && [ "$name" -gt "$latest" ] && latest=$name
      done
      sum=$((sum + latest))
    done
  done
  echo "$sum"
}

# progresses FILE STEP: notes in the file how often a run stopped at this step. Returns 1 if it was
# restarted $most_restarts times in a row and saved no new step, or if the file can't be written.
most_restarts=5
progresses() {
  local last=-1 count=0
  [ ! -f "$1" ] || read -r last count <"$1" || true
  [[ $last =~ ^(-1|[0-9]{1,18})$ && $count =~ ^[0-9]{1,9}$ ]] || last=-1 count=0
  if [ "$2" -gt "$last" ]; then count=0; else count=$((count + 1)); fi
  echo "$2 $count" >"$1" || return 1
  [ "$count" -lt "$most_restarts" ]
}
