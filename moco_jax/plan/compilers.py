"""Target devices for ahead-of-time compilation; restricts JAX to the CPU backend."""

import os
from collections.abc import Sequence
from typing import Any

import jax

from moco_jax.plan import nvidia
from moco_jax.plan.topology import Topology, tpu_devices


def use_only_cpus(topologies: Sequence[Topology]) -> None:
    """Restricts JAX to the CPU backend, with a virtual CPU device for each GPU of a topology.

    Must be called before JAX starts its backends.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # the CUDA plugin starts without a driver
    gpus = [topology.devices for topology in topologies if not topology.chip.is_tpu]
    if gpus:
        jax.config.update("jax_num_cpu_devices", max(gpus))


def devices(topology: Topology) -> Sequence[Any]:
    """Returns the `jax.Device`s to compile for; CPUs for GPUs whose compiler is not installed.

    Raises:
      ValueError: if the compiler refuses the topology.
      ModuleNotFoundError: if the compiler is installed but does not start.
    """
    if topology.chip.is_tpu:
        return tpu_devices(topology)
    return nvidia.devices(topology) if nvidia.has_compiler() else cpus(topology)


def cpus(topology: Topology) -> Sequence[Any]:
    """Returns as many virtual CPU devices as the topology has devices."""
    return jax.devices("cpu")[: topology.devices]
