#!/usr/bin/env bash
# Checks this machine: whether training is right here, and how fast it is. The first call installs
# .venv. It takes less than 3 minutes and prints a line for each check.
# usage: bash launch/check.sh [--dry-run] [--json=FILE] [--folder=FOLDER]
#   --json      file for the results, default moco_jax_check.json
#   --folder    folder on the disk that runs are saved to
#   --dry-run   prints the commands and does not run them
# Exit codes: 0 nothing is wrong; 1 something is; 130 Ctrl-C; 2 an error that the message explains.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
take_flags "$0" "$@"
. "$root/launch/setup.sh" "" # without an argument it would read those of this script
become "$python" -m moco_jax.check ${arguments[@]+"${arguments[@]}"}
