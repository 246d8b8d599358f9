"""What a compiled step means for a run on a pod: memory, time, epochs a day, decoding."""

import dataclasses

from moco_jax.plan.collectives import bytes_by_kind
from moco_jax.plan.hardware import GIB
from moco_jax.plan.program import Program
from moco_jax.plan.topology import Topology

_USABLE_TPU = 0.96  # of the memory, where it is not known how much libtpu keeps
_USABLE_GPU = 0.75  # of the memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A run's step on a topology; memory and FLOPs are a chip's, not a device's.

    Attributes:
      topology: of the run.
      program: of one device.
      batch_size: images a step, over all chips.
      waiting: batches on a chip beside the one in use: those that are ahead, and in use before.
      mfu: fraction of the chip's peak that is assumed.
      training_images: of the data set.
    """

    topology: Topology
    program: Program
    batch_size: int
    waiting: int
    mfu: float
    training_images: int

    @property
    def images(self) -> float:
        """Images a chip and step."""
        return self.batch_size / self.topology.chips

    @property
    def state_gib(self) -> float:
        return self._gib(self.program.state)

    @property
    def input_gib(self) -> float:
        return self._gib(self.program.batch * (1 + self.waiting))

    @property
    def temporaries_gib(self) -> float | None:
        temporaries = self.program.temporaries
        return None if temporaries is None else self._gib(temporaries)

    @property
    def code_gib(self) -> float:
        return self._gib(self.program.code)

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
        """Of a chip and step."""
        flops = self.program.flops
        return None if flops is None else flops * self.topology.chip.devices_per_chip

    @property
    def moved(self) -> dict[str, float]:
        """Bytes of a chip and step, by the kind of collective."""
        devices = self.topology.chip.devices_per_chip
        return {
            kind: size * devices for kind, size in sorted(bytes_by_kind(self.program.moved).items())
        }

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
        # A part of a host has a part of its vCPUs.
        fraction = min(1.0, self.topology.chips / chip.chips_per_host)
        return None if rate is None else rate / (chip.vcpus_per_host * fraction)

    def most_images(self) -> float | None:
        """Returns the batch that memory would hold, were all but the state proportional to it."""
        if self.temporaries_gib is None:
            return None
        room = self.usable_gib - self.state_gib - self.code_gib
        return max(0.0, self.batch_size * room / (self.input_gib + self.temporaries_gib))

    def _gib(self, device_bytes: float) -> float:
        return device_bytes * self.topology.chip.devices_per_chip / GIB


def table(forecasts: list[Forecast]) -> str:
    """Returns the forecasts as two tables, memory and speed, a row a topology in each."""
    kinds = sorted({kind for forecast in forecasts for kind in forecast.moved})
    memory = "topology chips batch images/chip state input temporaries program GiB/chip usable fits"
    rows = [memory.split(), *(_memory(forecast) for forecast in forecasts)]
    speed = ["topology", "TFLOP/chip", *(f"{kind} MB" for kind in kinds)]
    speed += ["step ms", "epochs/day", "images/s", "a host", "a vCPU", "compiled in"]
    return "\n\n".join(
        [_aligned(rows), _aligned([speed, *(_speed(forecast, kinds) for forecast in forecasts)])]
    )


def _memory(f: Forecast) -> list[str]:
    """Returns the row of a forecast in the table of memory."""
    sizes = (f.state_gib, f.input_gib, f.temporaries_gib, f.code_gib, f.total_gib, f.usable_gib)
    counts = [str(f.topology.chips), str(f.batch_size), f"{f.images:.4g}"]
    return [str(f.topology), *counts, *(_number(x, 2) for x in sizes), "yes" if f.fits else "NO"]


def _speed(f: Forecast, kinds: list[str]) -> list[str]:
    """Returns the row of a forecast in the table of speed."""
    moved = [f.moved.get(kind, 0.0) if f.flops else None for kind in kinds]
    return [
        str(f.topology),
        _number(f.flops, 3, 1e-12),
        *(_number(size, 2, 1e-6) for size in moved),
        _number(f.step_seconds, 1, 1e3),
        _number(f.epochs_per_day, 1),
        *(_number(x, 0) for x in (f.images_per_second, f.decode_per_host, f.decode_per_vcpu)),
        f"{f.program.seconds:.0f} s",
    ]


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "?" if value is None else f"{value * scale:.{digits}f}"


def _aligned(rows: list[list[str]]) -> str:
    """Returns rows as text, the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
