"""Forecast of a run from its compiled step: memory, time, epochs per day, images to decode."""

import collections
import dataclasses
import math

from moco_jax.data.loading.streamed import MOST_ON_DEVICES
from moco_jax.plan.hardware import GIB
from moco_jax.plan.program import Program
from moco_jax.plan.topology import Topology

_USABLE_TPU = 0.96  # fraction of the memory, if the limit of libtpu is unknown
_USABLE_GPU = 0.75  # fraction of the memory, JAX's default of XLA_PYTHON_CLIENT_MEM_FRACTION


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The step of a run on a topology; its numbers are per chip, not per device, NaN if unknown."""

    topology: Topology
    program: Program
    batch_size: int  # images per step, over all chips
    mfu: float  # assumed fraction of the chip's peak FLOP/s
    training_images: int

    @property
    def memory_gib(self) -> dict[str, float]:
        """GiB by use. The input is all batches that are on the devices at the same time."""
        sizes = {
            "state": self.program.state_bytes,
            "input": self.program.batch_bytes * MOST_ON_DEVICES,
            "temporaries": self.program.temporary_bytes,
            "program": self.program.code_bytes,
        }
        devices = self.topology.chip.devices_per_chip
        return {use: size * devices / GIB for use, size in sizes.items()}

    @property
    def total_gib(self) -> float:
        return sum(self.memory_gib.values())

    @property
    def usable_gib(self) -> float:
        chip = self.topology.chip
        return chip.usable_gib or chip.memory_gib * (_USABLE_TPU if chip.is_tpu else _USABLE_GPU)

    @property
    def fits(self) -> bool:
        return not self.program.refusal and self.total_gib <= self.usable_gib  # not if NaN

    @property
    def flops(self) -> float:
        """Floating-point operations per chip and step."""
        return self.program.flops * self.topology.chip.devices_per_chip

    @property
    def collective_bytes(self) -> dict[str, int]:
        """Bytes per chip and step, by the kind of collective."""
        total, devices = collections.Counter(), self.topology.chip.devices_per_chip
        for collective in self.program.collectives:
            total[collective.kind] += collective.bytes_per_step * devices
        return total

    @property
    def step_seconds(self) -> float:
        return self.flops / (self.topology.chip.peak_flops * self.mfu)

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.step_seconds

    @property
    def decode_per_vcpu(self) -> float:
        """Images/s that each of a host's vCPUs must decode."""
        chip = self.topology.chip
        # A fraction of a host's chips comes with the same fraction of its vCPUs.
        fraction = min(1.0, self.topology.chips / chip.chips_per_host)
        return self.images_per_second / self.topology.hosts / (chip.vcpus_per_host * fraction)

    def estimated_largest_batch(self) -> float:
        """Returns the batch size at which memory is full, if input and temporaries scale with it.

        0 if the memory of the step is unknown.
        """
        memory = self.memory_gib
        room = self.usable_gib - memory["state"] - memory["program"]
        batch = self.batch_size * room / (memory["input"] + memory["temporaries"])
        return batch if batch > 0 else 0.0  # 0 if NaN


def table(forecasts: list[Forecast]) -> str:
    """Returns the forecasts as two tables, memory and speed, with one row per topology in each."""
    kinds = sorted({kind for forecast in forecasts for kind in forecast.collective_bytes})
    memory = _aligned([_memory_row(forecast) for forecast in forecasts])
    speed = _aligned([_speed_row(forecast, kinds) for forecast in forecasts])
    return (
        f"Memory, GiB per chip:\n{memory}\n\n"
        f"Speed; FLOPs and collectives per chip and step:\n{speed}"
    )


def _memory_row(f: Forecast) -> dict[str, str]:
    sizes = f.memory_gib | {"total": f.total_gib, "usable": f.usable_gib}
    return {
        "topology": str(f.topology),
        "chips": str(f.topology.chips),
        "batch": str(f.batch_size),
        "images/chip": f"{f.batch_size / f.topology.chips:.4g}",
        **{name: _number(size, 2) for name, size in sizes.items()},
        "fits": "yes" if f.fits else "NO",
    }


def _speed_row(f: Forecast, kinds: list[str]) -> dict[str, str]:
    unknown = math.isnan(f.flops)
    moved = {kind: math.nan if unknown else f.collective_bytes.get(kind, 0.0) for kind in kinds}
    return {
        "topology": str(f.topology),
        "TFLOP/chip": _number(f.flops * 1e-12, 3),
        **{f"{kind} MB": _number(size * 1e-6, 2) for kind, size in moved.items()},
        "step ms": _number(f.step_seconds * 1e3, 1),
        "epochs/day": _number(f.images_per_second * 86400 / f.training_images, 1),
        "images/s": _number(f.images_per_second, 0),
        "images/s/host": _number(f.images_per_second / f.topology.hosts, 0),
        "images/s/vCPU": _number(f.decode_per_vcpu, 0),
        "compile time": f"{f.program.compile_seconds:.0f} s",
    }


def _number(value: float, digits: int) -> str:
    return "?" if math.isnan(value) else f"{value:.{digits}f}"


def _aligned(rows: list[dict[str, str]]) -> str:
    """Returns rows and their keys as text; the first column is aligned left, the others right."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])])
        for first, *others in lines
    )
