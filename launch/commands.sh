# What the scripts share: --help, --dry-run, and errors in one message; sourced by each of them.
# Sets $root, the folder of the checkout. The bash 3.2 of macOS is enough.

# shellcheck disable=SC2034 # root and arguments are for the scripts
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=

# usage SCRIPT: prints the comment at its top.
usage() {
  awk 'NR == 1 || /^#SBATCH/ { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$1"
}

# fail MESSAGE: ends with 2, the code of a problem that starting again does not mend.
fail() {
  echo "error: $1" >&2
  exit 2
}

# need PROGRAM ADVICE: fails if it is not there; a dry run goes without.
need() {
  [ -n "$dry_run" ] || command -v "$1" >/dev/null || fail "$1 is not on PATH; $2"
}

# take_flags SCRIPT ARGUMENT...: obeys --help and --dry-run wherever they stand before a --; the
# others are left in $arguments.
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

# quoted WORD...: prints the words as one line that a shell reads as these very words.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

# run COMMAND...: runs it; a dry run prints it.
run() {
  if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi
}

# become COMMAND...: the same for a script's last command, in the script's place: signals reach it.
become() {
  if [ -n "$dry_run" ]; then quoted "$@"; else exec "$@"; fi
}
