"""Set-up of all tests: 8 virtual CPU devices, and JAX at its strictest."""

import os
import pathlib
import subprocess
import sys
import tempfile

# Before jax is imported, and for the tests' own processes too. Compiling is most of their time: it
# is done without optimisation, and the cache spares compiling the same step again in every test
# that starts the loop.
_FAST_COMPILE = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + f" {_FAST_COMPILE} --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
_CACHE = tempfile.TemporaryDirectory(prefix="moco_jax_tests_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def devices_flags(devices: int) -> str:
    """Returns the XLA_FLAGS of a test's own process with so many virtual devices."""
    return f"{_FAST_COMPILE} --xla_force_host_platform_device_count={devices}"


def run_command(repository: pathlib.Path, module: str, *arguments, cwd=None, **environment):
    """Returns the finished `python -m module arguments...`, its output as text.

    On one device, as on a user's machine.
    """
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd or repository,
        env=os.environ | {"XLA_FLAGS": _FAST_COMPILE, "PYTHONPATH": str(repository)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    return pathlib.Path(__file__).parents[1]


def pytest_collection_modifyitems(items):
    platform = jax.default_backend()
    for item in items:
        for name in ("gpu", "tpu"):
            if name in item.keywords and platform != name:
                item.add_marker(pytest.mark.skip(reason=f"needs a {name.upper()}"))
