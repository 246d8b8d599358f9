#!/usr/bin/env bash
# Runs the tests, setting itself up on the first call. Arguments go to pytest.
# usage: bash launch/test.sh [-m slow] [tests/...]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" test
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m pyright --pythonpath "$python"
exec "$python" -m pytest "$@"
