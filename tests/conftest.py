"""Set-up of all tests: 8 virtual CPU devices, fast compilation, and JAX at its strictest."""

import gc
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

# Compiling is most of the tests' time. XLA compiles without optimisation, and its older emitters
# take less than half the time of the fusion emitters.
_BACKEND_LEVEL = "xla_backend_optimization_level=0"
_OLD_EMITTERS = "xla_cpu_use_fusion_emitters=false"
_FAST_COMPILE = "MOCO_JAX_TESTS_FAST_COMPILE"


def _known_flags() -> str:
    """Returns the compile flags that XLA knows: it ends the process on others.

    The XLA of a TPU or GPU plugin knows fewer flags for CPUs; beside one the second is left out.
    """
    spec = importlib.util.find_spec("jaxlib")
    assert spec and spec.origin
    site = pathlib.Path(spec.origin).parents[1]
    if (site / "libtpu").is_dir() or any(site.glob("jax_plugins/*")):
        return f"--{_BACKEND_LEVEL}"
    flags = f"--{_BACKEND_LEVEL} --{_OLD_EMITTERS}"
    start = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    known = subprocess.run(start, env=environment, capture_output=True).returncode == 0
    return flags if known else f"--{_BACKEND_LEVEL}"


# A shell without job control starts background commands, and their children, without Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before jax is imported. The first process sets this for its workers and the processes of tests.
if _FAST_COMPILE not in os.environ:
    os.environ[_FAST_COMPILE] = _known_flags()
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            os.environ[_FAST_COMPILE],
            "--xla_force_host_platform_device_count=8",
        ]
    )
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # One cache for all processes: many tests compile the same step. With a size limit JAX locks it.
    _CACHE = tempfile.TemporaryDirectory(prefix="moco_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(4 * 2**30)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

os.environ.setdefault("TQDM_DISABLE", "1")  # progress depends on the speed of the machine

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from moco_jax.terminal import logs  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
logs.LOGGER.propagate = True  # to pytest's `caplog`

# MOCO_JAX_TESTS_EXAMPLES=1000 searches longer. Examples that fail are not kept in the clone.
hypothesis.settings.register_profile(
    "moco_jax",
    max_examples=int(os.environ.get("MOCO_JAX_TESTS_EXAMPLES", "10")),
    derandomize="MOCO_JAX_TESTS_EXAMPLES" not in os.environ,
    deadline=None,  # the machine may be slow
    database=None,
    print_blob=False,
    phases=[phase for phase in hypothesis.Phase if phase != hypothesis.Phase.explain],
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("moco_jax")


def devices_flags(devices: int) -> str:
    """Returns the XLA_FLAGS of a test's own process with this many virtual devices."""
    return f"{os.environ[_FAST_COMPILE]} --xla_force_host_platform_device_count={devices}"


def run_command(repository: pathlib.Path, module: str, *arguments, cwd=None, **environment):
    """Returns the finished `python -m module arguments...`, its output as text.

    It has one device, as on a user's machine.
    """
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd or repository,
        env=os.environ
        | {"XLA_FLAGS": os.environ[_FAST_COMPILE], "PYTHONPATH": str(repository)}
        | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(autouse=True)
def nothing_stays_behind():
    """Fails a test that leaves to later ones what belongs to the whole process."""
    before = _of_the_process()
    yield
    assert _of_the_process() == before


def _of_the_process() -> dict:
    # Libraries set variables of their own when they are imported.
    ours = ("JAX_", "XLA_", "MOCO_JAX_", "AWS_", "GOOGLE_", "XDG_", "HOME", "PATH", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k.startswith(ours)}
    return {
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "level": logs.LOGGER.level,
        "folder": os.getcwd(),
        "environment": environment,
        "collects": gc.isenabled(),
    }


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    return pathlib.Path(__file__).parents[1]


def pytest_collection_modifyitems(items):
    platform = jax.default_backend()
    for item in items:
        for name in ("gpu", "tpu"):
            if name in item.keywords and platform != name:
                item.add_marker(pytest.mark.skip(reason=f"needs a {name.upper()}"))
