"""Forecast of a run from its compiled step: memory, time, epochs per day, images to decode."""

import dataclasses

from moco_jax.plan.collectives import bytes_by_kind
from moco_jax.plan.hardware import GIB
from moco_jax.plan.program import Program
from moco_jax.plan.topology import Topology

_USABLE_TPU = 0.96  # fraction of the memory, if the limit of libtpu is unknown
_USABLE_GPU = 0.75  # fraction of the memory, JAX's default of XLA_PYTHON_CLIENT_MEM_FRACTION


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The step of a run on a topology; memory and FLOPs are per chip, not per device.

    Attributes:
      topology: the chips of the run.
      program: the compiled step.
      batch_size: images per step, over all chips.
      extra_batches: batches on the devices beside the current one, prefetched or still in use.
      mfu: assumed fraction of the chip's peak FLOP/s.
      training_images: number of images in the training set.
    """

    topology: Topology
    program: Program
    batch_size: int
    extra_batches: int
    mfu: float
    training_images: int

    @property
    def images_per_chip(self) -> float:
        return self.batch_size / self.topology.chips

    @property
    def state_gib(self) -> float:
        return self._gib(self.program.state_bytes)

    @property
    def input_gib(self) -> float:
        return self._gib(self.program.batch_bytes * (1 + self.extra_batches))

    @property
    def temporaries_gib(self) -> float | None:
        temporaries = self.program.temporary_bytes
        return None if temporaries is None else self._gib(temporaries)

    @property
    def code_gib(self) -> float:
        return self._gib(self.program.code_bytes)

    @property
    def total_gib(self) -> float | None:
        if self.temporaries_gib is None:
            return None
        return self.state_gib + self.input_gib + self.temporaries_gib + self.code_gib

    @property
    def usable_gib(self) -> float:
        chip = self.topology.chip
        return chip.usable_gib or chip.memory_gib * (_USABLE_TPU if chip.is_tpu else _USABLE_GPU)

    @property
    def fits(self) -> bool:
        total = self.total_gib
        return not self.program.refusal and total is not None and total <= self.usable_gib

    @property
    def flops(self) -> float | None:
        """Floating-point operations per chip and step."""
        flops = self.program.flops
        return None if flops is None else flops * self.topology.chip.devices_per_chip

    @property
    def collective_bytes(self) -> dict[str, float]:
        """Bytes per chip and step, by the kind of collective."""
        devices = self.topology.chip.devices_per_chip
        by_kind = bytes_by_kind(self.program.collectives)
        return {kind: size * devices for kind, size in sorted(by_kind.items())}

    @property
    def step_seconds(self) -> float | None:
        if self.flops is None:
            return None
        return self.flops / (self.topology.chip.peak_flops * self.mfu)

    @property
    def images_per_second(self) -> float | None:
        return None if self.step_seconds is None else self.batch_size / self.step_seconds

    @property
    def epochs_per_day(self) -> float | None:
        rate = self.images_per_second
        return None if rate is None else rate * 86400 / self.training_images

    @property
    def decode_per_host(self) -> float | None:
        """Images/s that each host must decode."""
        rate = self.images_per_second
        return None if rate is None else rate / self.topology.hosts

    @property
    def decode_per_vcpu(self) -> float | None:
        """Images/s that each of a host's vCPUs must decode."""
        chip, rate = self.topology.chip, self.decode_per_host
        # A fraction of a host's chips comes with the same fraction of its vCPUs.
        fraction = min(1.0, self.topology.chips / chip.chips_per_host)
        return None if rate is None else rate / (chip.vcpus_per_host * fraction)

    def estimated_largest_batch(self) -> float | None:
        """Returns the batch size at which memory is full, if input and temporaries scale with it.

        None if the memory of the step is unknown.
        """
        if self.temporaries_gib is None:
            return None
        room = self.usable_gib - self.state_gib - self.code_gib
        return max(0.0, self.batch_size * room / (self.input_gib + self.temporaries_gib))

    def _gib(self, device_bytes: float) -> float:
        return device_bytes * self.topology.chip.devices_per_chip / GIB


def table(forecasts: list[Forecast]) -> str:
    """Returns the forecasts as two tables, memory and speed, with one row per topology in each."""
    kinds = sorted({kind for forecast in forecasts for kind in forecast.collective_bytes})
    memory = "topology chips batch images/chip state input temporaries program total usable fits"
    memory_rows = [memory.split(), *(_memory_row(forecast) for forecast in forecasts)]
    speed = ["topology", "TFLOP/chip", *(f"{kind} MB" for kind in kinds), "step ms", "epochs/day"]
    speed += ["images/s", "images/s/host", "images/s/vCPU", "compile time"]
    speed_rows = [speed, *(_speed_row(forecast, kinds) for forecast in forecasts)]
    return (
        f"Memory, GiB per chip:\n{_aligned(memory_rows)}\n\n"
        f"Speed; FLOPs and collectives per chip and step:\n{_aligned(speed_rows)}"
    )


def _memory_row(f: Forecast) -> list[str]:
    sizes = (f.state_gib, f.input_gib, f.temporaries_gib, f.code_gib, f.total_gib, f.usable_gib)
    counts = [str(f.topology.chips), str(f.batch_size), f"{f.images_per_chip:.4g}"]
    return [str(f.topology), *counts, *(_number(x, 2) for x in sizes), "yes" if f.fits else "NO"]


def _speed_row(f: Forecast, kinds: list[str]) -> list[str]:
    moved = [f.collective_bytes.get(kind, 0.0) if f.flops else None for kind in kinds]
    return [
        str(f.topology),
        _number(f.flops, 3, 1e-12),
        *(_number(size, 2, 1e-6) for size in moved),
        _number(f.step_seconds, 1, 1e3),
        _number(f.epochs_per_day, 1),
        *(_number(x, 0) for x in (f.images_per_second, f.decode_per_host, f.decode_per_vcpu)),
        f"{f.program.compile_seconds:.0f} s",
    ]


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "?" if value is None else f"{value * scale:.{digits}f}"


def _aligned(rows: list[list[str]]) -> str:
    """Returns rows as text; the first column is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
