# Creates .venv with the jax for this machine, unless it exists. Sets $python and $platform. Other
# scripts source this file after commands.sh.
# usage: . launch/setup.sh EXTRA     EXTRA: an additional extra of setup.py, such as test, or ""

extra=$1

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: found no Python 3.11 or newer; install it, or set PYTHON=/path/to/python3" >&2
  return 1
}

# has_tpu: whether a PCI device is a TPU v3, v4, v5p, v5e, v6e or TPU7x. Network cards of Google have
# the same vendor.
has_tpu() {
  local device
  for device in "${PCI_DEVICES:-/sys/bus/pci/devices}"/*; do
    if grep -qs 0x1ae0 "$device/vendor" && grep -qsE '^0x00(27|5e|62|63|6f|76)$' "$device/device"; then
      return 0
    fi
  done
  return 1
}

# Prints the platform: $MOCO_JAX_PLATFORM (cpu, cuda13, tpu) if set, or else what this machine has.
find_platform() {
  if [ -n "${MOCO_JAX_PLATFORM:-}" ]; then
    echo "$MOCO_JAX_PLATFORM"
  elif nvidia-smi >/dev/null 2>&1; then
    echo cuda13
  elif compgen -G '/dev/accel*' >/dev/null || has_tpu; then
    echo tpu
  else
    echo cpu
  fi
}

platform=$(find_platform)
case $platform in
  cpu) extras=$extra ;;
  cuda13 | tpu) extras=$platform${extra:+,$extra} ;;
  *) fail "MOCO_JAX_PLATFORM=$platform is unknown; known: cpu, cuda13, tpu" ;;
esac

# shellcheck disable=SC2154 # commands.sh sets root
python=$root/.venv/bin/python
wanted="$extras $(cksum <"$root/setup.py")"
if ! { [ -x "$python" ] && grep -qsxF "$wanted" "$root/.venv/installed"; }; then
  echo "setting up .venv for $platform (once, about a minute)" >&2
  system_python=$(find_python) || exit 2
  [ -x "$python" ] || run "$system_python" -m venv "$root/.venv" || exit 1
  run "$python" -m pip install --quiet --disable-pip-version-check --editable "$root${extras:+[$extras]}" || exit 1
  [ -n "$dry_run" ] || echo "$wanted" >>"$root/.venv/installed"
fi
