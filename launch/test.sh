#!/usr/bin/env bash
# Runs the linters and the tests. The first call installs .venv. Arguments are passed to pytest.
# usage: bash launch/test.sh [--dry-run] [-m slow|slurm|mpi] [tests/...]
#   --numprocesses=0   one process: for a debugger, or to see what the tests print
#   --dry-run          prints the commands and does not run them
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
take_flags "$0" "$@"
. "$root/launch/setup.sh" test
run cd "$root"
run "$python" -m ruff check .
run "$python" -m ruff format --check .
run "$python" -m pyright --pythonpath "$python"
# The tests of a file share a process, so that it compiles each program once.
become "$python" -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile ${arguments[@]+"${arguments[@]}"}
