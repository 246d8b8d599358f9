#!/usr/bin/env bash
# Runs the tests, setting itself up on the first call. Arguments go to pytest.
# usage: bash launch/test.sh [--dry-run] [-m slow|slurm|mpi] [tests/...]
#   --dry-run   prints the commands, and runs none
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
take_flags "$0" "$@"
. "$root/launch/setup.sh" test
run cd "$root"
run "$python" -m ruff check .
run "$python" -m ruff format --check .
run "$python" -m pyright --pythonpath "$python"
become "$python" -m pytest ${arguments[@]+"${arguments[@]}"}
