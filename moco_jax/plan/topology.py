"""Topologies of accelerators: their names, and the TPU devices to compile for.

`v5e:16x16` is a TPU slice: a generation and a shape in chips. `h100:8` is a number of GPUs.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re

from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from moco_jax.plan.hardware import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Topology:
    """Connected chips of one kind."""

    kind: str  # a key of `hardware.CHIPS`
    shape: tuple[int, ...]  # chips along each dimension; for GPUs, their number

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
      ValueError: for a malformed name; the message gives the allowed ones.
    """
    kind, _, size = text.strip().lower().partition(":")
    if kind not in CHIPS:
        close = [known for known in CHIPS if kind and known.startswith(kind)]
        close = close or difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(
            f"--topology={text}: unknown chip {kind!r}; {hint}allowed: {', '.join(CHIPS)}"
        )
    chip = CHIPS[kind]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise ValueError(f"--topology={text} is malformed; {_allowed(kind)}")
    topology = Topology(kind, tuple(int(side) for side in size.split("x")))
    dimensions = len(topology.shape)
    if dimensions != max(1, chip.dimensions):
        raise ValueError(f"--topology={text} has {dimensions} dimensions; {_allowed(kind)}")
    if chip.is_tpu and topology.chips > chip.pod_chips:
        raise ValueError(f"--topology={text} has {topology.chips} chips; {_allowed(kind)}")
    return topology


def _allowed(kind: str) -> str:
    """Returns the allowed topologies of a kind of chip, for error messages."""
    chip = CHIPS[kind]
    if not chip.is_tpu:
        return f"for {chip.title} GPUs give their number, such as {kind}:8"
    examples = {2: ("2x2", "16x16"), 3: ("2x2x1", "4x4x4")}[chip.dimensions]
    return (
        f"a {chip.title} slice has {chip.dimensions} dimensions, the first two even, and at most "
        f"{chip.pod_chips} chips, such as {kind}:{examples[0]} or {kind}:{examples[1]}"
    )


def check_compiler() -> None:
    """Raises a ModuleNotFoundError if the TPU compiler is not installed; does not load it."""
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            "to compile for TPUs, the package libtpu must be installed (no TPU is needed): "
            "pip install 'moco-jax[plan]'",
            name="libtpu",
        )


def tpu_devices(topology: Topology) -> list:
    """Returns the `jax.Device`s of a TPU slice; programs can be compiled for them, but not run.

    Raises:
      ValueError: if the compiler does not know the slice.
    """
    # Without these, libtpu looks for a TPU of this machine.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["TPU_ACCELERATOR_TYPE"] = f"{topology.kind}-{topology.devices}"
    # One process at a time may use a TPU; any number may compile.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # `jax.devices()` on a v4 chip has one device; libtpu's default here is one per core, two.
    options = {"chip_config_name": "megacore"} if topology.kind == "v4" else {}
    try:
        found = topologies.get_topology_desc(str(topology), platform="tpu", **options).devices
    except JaxRuntimeError as error:
        raise ValueError(
            f"the TPU compiler refuses --topology={topology}: {error}; {_allowed(topology.kind)}"
        ) from error
    if len(found) != topology.devices:
        raise ValueError(
            f"--topology={topology} has {len(found)} devices for the compiler, but "
            f"{topology.devices} in moco_jax/plan/hardware.py; correct CHIPS there"
        )
    return list(found)
