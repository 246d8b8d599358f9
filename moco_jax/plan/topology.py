"""Accelerators that aren't here: their names, and the devices to compile for.

`v5e:16x16` is a TPU slice, by generation and shape in chips; `h100:8` so many GPUs.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re

from moco_jax.plan.hardware import CHIPS, Chip

INSTALL = "pip install 'moco-jax[plan]'"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind, connected.

    Attributes:
      kind: of the chips, a key of `hardware.CHIPS`.
      shape: chips along each dimension; for GPUs their number.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Number of `jax.Device`s."""
        return self.chips * self.chip.devices_per_chip

    @property
    def hosts(self) -> int:
        return -(-self.chips // self.chip.chips_per_host)

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"


def parse(text: str) -> Topology:
    """Returns the topology of a name such as `v5e:4x4`, `v4:2x2x4` or `h100:8`.

    Raises:
      ValueError: says what is wrong with it, and what is allowed.
    """
    kind, colon, size = text.strip().lower().partition(":")
    if kind not in CHIPS:
        close = [known for known in CHIPS if kind and known.startswith(kind)]
        close = close or difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(f"{text!r}: unknown chips {kind!r}; {hint}known: {', '.join(CHIPS)}")
    chip = CHIPS[kind]
    if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise ValueError(f"{text!r} is no topology; {_allowed(kind)}")
    topology = Topology(kind, tuple(int(side) for side in size.split("x")))
    if len(topology.shape) != max(1, chip.dimensions):
        raise ValueError(f"{text!r} has {len(topology.shape)} dimensions; {_allowed(kind)}")
    if chip.is_tpu and topology.chips > chip.pod_chips:
        raise ValueError(f"{text!r} has {topology.chips} chips; {_allowed(kind)}")
    return topology


def _allowed(kind: str) -> str:
    """Returns what may be asked for of this kind."""
    chip = CHIPS[kind]
    if not chip.is_tpu:
        return f"{chip.title}s are asked for by number, such as {kind}:8"
    examples = {2: ("2x2", "16x16"), 3: ("2x2x1", "4x4x4")}[chip.dimensions]
    return (
        f"a {chip.title} slice has {chip.dimensions} dimensions, the first two even, and at most "
        f"{chip.pod_chips} chips: {kind}:{examples[0]}, {kind}:{examples[1]}"
    )


def check_compiler() -> None:
    """Looks, without loading it, whether the compiler for TPUs is installed.

    Raises:
      ModuleNotFoundError: says how to install it.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            f"compiling for TPUs needs the package libtpu, no TPU: {INSTALL}", name="libtpu"
        )


def tpu_devices(topology: Topology) -> list:
    """Returns the `jax.Device`s of a TPU slice, to compile for; they can't run anything.

    Raises:
      ValueError: if the compiler knows no such slice.
    """
    # libtpu would otherwise look for the TPU of this machine.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["TPU_ACCELERATOR_TYPE"] = f"{topology.kind}-{topology.devices}"
    # One process at a time may use a TPU; any number may compile.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    # A v4 chip is one device, as `jax.devices()` on it says; libtpu's default are its two cores.
    options = {"chip_config_name": "megacore"} if topology.kind == "v4" else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=str(topology), **options
        ).devices
    except JaxRuntimeError as error:
        raise ValueError(
            f"the TPU compiler refuses {str(topology)!r}: {error}; {_allowed(topology.kind)}"
        ) from error
    if len(found) != topology.devices:
        raise ValueError(
            f"{str(topology)!r} has {len(found)} devices by the compiler, {topology.devices} by "
            f"moco_jax/plan/hardware.py"
        )
    return list(found)
