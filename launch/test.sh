#!/usr/bin/env bash
# Runs the tests, setting itself up on the first call. Arguments go to pytest.
# usage: bash launch/test.sh [--dry-run] [-m slow|slurm|mpi] [tests/...]
#   --numprocesses=0   in one process, for a debugger or to see what is printed
#   --dry-run   prints the commands, and runs none
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
take_flags "$0" "$@"
. "$root/launch/setup.sh" test
run cd "$root"
run "$python" -m ruff check .
run "$python" -m ruff format --check .
run "$python" -m pyright --pythonpath "$python"
# A file of tests stays in one process: it compiles its programs once.
become "$python" -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile ${arguments[@]+"${arguments[@]}"}
