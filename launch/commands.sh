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
