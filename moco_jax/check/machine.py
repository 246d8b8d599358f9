"""The machine: devices, memory, versions, and whether JAX uses the accelerator that is there."""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import jax

from moco_jax.check.findings import Finding, Verdict
from moco_jax.data.loading.loader import cores
from moco_jax.parallel import devices

# What JAX needs for an accelerator, any one of these.
_PLUGINS = {"NVIDIA GPU": ("jax-cuda13-plugin", "jax-cuda12-plugin"), "TPU": ("libtpu",)}
_PACKAGES = (
    *("moco-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *(*_PLUGINS["NVIDIA GPU"], *_PLUGINS["TPU"], "nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
)
_INSTALL = {"NVIDIA GPU": "pip install 'moco-jax[cuda13]'", "TPU": "pip install 'moco-jax[tpu]'"}
_GIB = 2**30


def check() -> Finding:
    """Returns the devices; wrong if JAX uses the CPU of a machine with an accelerator, or none.

    The finding has values if JAX can open the devices.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError if there is no device
        return Finding("machine", Verdict.WRONG, devices.reason(error), devices.advice())
    facts = found()
    memory = f", {facts['memory_gib']:.0f} GiB each" if facts["memory_gib"] else ""
    several = f" of {facts['processes']} processes" if facts["processes"] > 1 else ""
    driver = f", driver {facts['driver']}" if facts["driver"] else ""
    text = (
        f"{facts['devices']} x {facts['device']}{memory}{several}{driver}; "
        f"{facts['cores']} cores, jax {facts['versions']['jax']}, python {facts['python']}"
    )
    unused = _unused_accelerator(facts["platform"])
    if not unused:
        return Finding("machine", Verdict.OK, text, values=facts)
    advice = f"the {unused} of this machine is not used{_why_unused(unused)}"
    return Finding("machine", Verdict.WRONG, text, advice, facts)


def _why_unused(accelerator: str) -> str:
    """Returns why JAX does not use an accelerator, or what to do; ends the sentence."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return f", because JAX_PLATFORMS={chosen}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if accelerator == "NVIDIA GPU" and visible in ("", "-1"):
        return f", because CUDA_VISIBLE_DEVICES={visible} hides it"
    if installed := next(filter(_version, _PLUGINS[accelerator]), ""):
        program = "python -c 'import jax; jax.devices()'"
        return f", although {installed} is installed; {program} prints why"
    return f"; install JAX for it: {_INSTALL[accelerator]}"


def found() -> dict[str, Any]:
    """Returns the facts about the machine that a report needs, which JSON can encode."""
    device = jax.local_devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "memory_gib": (device.memory_stats() or {}).get("bytes_limit", 0) / _GIB,
        "driver": _driver() if device.platform == "gpu" else "",
        "runtime": " ".join(device.client.platform_version.split())[:200],
        "cores": cores(),
        "host_memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: v for name in _PACKAGES if (v := _version(name))},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _driver() -> str:
    """Returns the version of NVIDIA's driver, '' if it is unknown."""
    return next(iter(_smi("driver_version")), "")


def _smi(query: str) -> list[str]:
    """Returns a line for each NVIDIA GPU; [] without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def _has_gpu() -> bool:
    return bool(_smi("name"))


def _has_tpu() -> bool:
    # Private API: it knows the PCI numbers of TPUs. Files such as /dev/vfio/0 are there for other
    # devices, too.
    from jax._src import hardware_utils

    with contextlib.suppress(OSError):
        return hardware_utils.num_available_tpu_chips_and_device_id()[0] > 0
    return False


_ACCELERATORS: dict[str, Callable[[], bool]] = {"NVIDIA GPU": _has_gpu, "TPU": _has_tpu}


def _unused_accelerator(used: str) -> str:
    """Returns the accelerator of a machine whose CPU is used, '' without one."""
    if used != "cpu":
        return ""
    return next((name for name, is_there in _ACCELERATORS.items() if is_there()), "")
