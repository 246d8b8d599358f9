# What the scripts for a GPU have in common; they source it with $out and $wheels, both may be relative.
# Sets $python, $limit (seconds) and $begun, goes to the checkout and installs the wheels into $out.
# shellcheck disable=SC2034 # the scripts use limit and begun
out=$(realpath -m "$out")
wheels=${wheels:+$(realpath "$wheels")}
python=${PYTHON:-python3} limit=${LIMIT:-585} begun=$SECONDS
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$out"
export PYTHONUNBUFFERED=1 TQDM_DISABLE=1
if [ -n "$wheels" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$out/site" "$wheels"/*.whl || exit 1
  export PYTHONPATH=$out/site${PYTHONPATH:+:$PYTHONPATH}
fi
