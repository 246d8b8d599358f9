"""The devices to compile for, of chips that aren't here, and a JAX that looks for no others."""

import os
from collections.abc import Sequence
from typing import Any

import jax

from moco_jax.plan import nvidia, topology
from moco_jax.plan.topology import Topology


def use_only_cpus(asked: Sequence[Topology]) -> None:
    """Makes JAX look for no accelerator of this machine, and gives it a CPU device for each GPU.

    To be called before anything else of JAX's.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    nvidia.do_without_driver()
    gpus = [place.devices for place in asked if not place.chip.is_tpu]
    if gpus:
        jax.config.update("jax_num_cpu_devices", max(gpus))


def devices(place: Topology) -> Sequence[Any]:
    """Returns the devices to compile for: CPUs for GPUs whose compiler is not installed.

    Raises:
      ValueError: if the compiler refuses the topology.
      ModuleNotFoundError: if it is there, and does not start.
    """
    if place.chip.is_tpu:
        return topology.tpu_devices(place)
    return nvidia.devices(place) if nvidia.has_compiler() else cpus(place)


def cpus(place: Topology) -> Sequence[Any]:
    """Returns as many devices of this machine's processor."""
    return jax.devices("cpu")[: place.devices]
