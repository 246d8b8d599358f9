"""Forecast of a run from its compiled step: memory, time and what bounds it, images to decode."""

import collections
import dataclasses
import math
from typing import NamedTuple

from ml_collections import ConfigDict

from moco_jax.data.loading.streamed import MOST_ON_DEVICES
from moco_jax.plan.hardware import GIB
from moco_jax.plan.program import Program
from moco_jax.plan.topology import Topology
from moco_jax.training.optimizers import total_steps

_USABLE_TPU = 0.96  # fraction of the memory, if the limit of libtpu is unknown
_USABLE_GPU = 0.75  # fraction of the memory, JAX's default of XLA_PYTHON_CLIENT_MEM_FRACTION
# Fraction of the bound that a step reaches; benchmarks/results/pods.md compares it with runs.
_EFFICIENCY_GPU, _EFFICIENCY_TPU = 0.55, 0.85
ERROR = 0.35  # of the time, by the same comparison
DECODES = 400  # images/s of ImageNet's size by a vCPU; a core of the machine "2 cores" decodes 567


class Run(NamedTuple):
    """What the speed of a run depends on, besides its program.

    Attributes:
      batch_size: images a step, over all chips.
      training_images: number of images of an epoch.
      steps: of the whole run.
      dtype: of the computation.
      streamed: whether images are decoded at each epoch, because they do not fit in device memory.
    """

    batch_size: int
    training_images: int
    steps: int
    dtype: str
    streamed: bool


def run_of(config: ConfigDict, training_images: int) -> Run:
    """Returns the run of a config whose keys are all set."""
    per_epoch = max(1, training_images // config.batch_size)
    smallest = 3 * config.data.eval_resize**2 * training_images  # bytes of the decoded images
    return Run(
        config.batch_size,
        training_images,
        total_steps(config, per_epoch),
        config.dtype,
        streamed=smallest > config.data.resident_megabytes << 20,
    )


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The step of a run on a topology; its numbers are per chip, not per device, NaN if unknown."""

    topology: Topology
    program: Program
    run: Run
    efficiency: float | None = None  # fraction of the bound that is reached; None: as measured
    decodes: float = DECODES  # images/s that a vCPU decodes

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
    def bounds(self) -> dict[str, float]:
        """Seconds that each part of the chips takes for a step at least; unknown ones absent."""
        chip, program = self.topology.chip, self.program
        # A GPU multiplies float32 as TensorFloat-32, a TPU as bfloat16.
        slower = 2 if self.run.dtype == "float32" and not chip.is_tpu else 1
        found = {"matrix units": self.flops * slower / chip.peak_flops}
        if program.cycles and chip.clock_ghz:
            # They include the memory, of which a TPU keeps much on the chip.
            found["cycles"] = program.cycles / (chip.clock_ghz * 1e9)
        else:
            moved = program.bytes_moved * chip.devices_per_chip
            found["memory"] = moved / (chip.memory_gb_per_s * 1e9)
        # An all-reduce sends and receives about twice its bytes.
        each = self.collective_bytes.items()
        sent = sum(size * (2 if kind == "all-reduce" else 1) for kind, size in each)
        found["interconnect"] = sent / (chip.link_gb_per_s * 1e9 / 2)
        return {name: seconds for name, seconds in found.items() if not math.isnan(seconds)}

    @property
    def reached(self) -> float:
        """The fraction of its bound that a step is expected to reach."""
        usual = _EFFICIENCY_TPU if self.topology.chip.is_tpu else _EFFICIENCY_GPU
        return self.efficiency or usual

    @property
    def _device_seconds(self) -> float:
        """The expected time of a step without decoding: links are assumed not to overlap."""
        bounds = self.bounds
        links = bounds.pop("interconnect", 0.0)
        return (max(bounds.values(), default=math.nan) + links) / self.reached

    @property
    def _decoding_seconds(self) -> float:
        """The time in which the hosts decode a batch; 0 if they decode it only once."""
        return self.run.batch_size / (self.decodes * self._vcpus) if self.run.streamed else 0.0

    @property
    def step_seconds(self) -> float:
        """The expected time of a step; NaN if nothing is known."""
        seconds = self._device_seconds
        return seconds if math.isnan(seconds) else max(seconds, self._decoding_seconds)

    @property
    def bound(self) -> str:
        """What limits the step; '?' if nothing is known."""
        if math.isnan(self._device_seconds):
            return "?"
        if self._decoding_seconds > self._device_seconds:
            return "decoding"
        bounds = self.bounds
        return max(bounds, key=lambda name: bounds[name])

    @property
    def images_per_second(self) -> float:
        return self.run.batch_size / self.step_seconds

    @property
    def range(self) -> tuple[float, float]:
        """The images/s between which the run is expected."""
        return self.images_per_second / (1 + ERROR), self.images_per_second * (1 + ERROR)

    @property
    def hours(self) -> float:
        """The expected time of the whole run, without evaluations and checkpoints."""
        return self.run.steps * self.step_seconds / 3600

    @property
    def _vcpus(self) -> float:
        """vCPUs of all hosts. A fraction of a host's chips comes with that fraction of them."""
        chip = self.topology.chip
        fraction = min(1.0, self.topology.chips / chip.chips_per_host)
        return self.topology.hosts * chip.vcpus_per_host * fraction

    @property
    def decode_per_vcpu(self) -> float:
        """Images/s that each of a host's vCPUs must decode."""
        return self.images_per_second / self._vcpus

    def estimated_largest_batch(self) -> float:
        """Returns the batch size at which memory is full, if input and temporaries scale with it.

        0 if the memory of the step is unknown.
        """
        memory = self.memory_gib
        room = self.usable_gib - memory["state"] - memory["program"]
        batch = self.run.batch_size * room / (memory["input"] + memory["temporaries"])
        return batch if batch > 0 else 0.0  # 0 if NaN


def table(forecasts: list[Forecast], price: float = 0.0) -> str:
    """Returns the forecasts as tables of memory, work and speed with one row per topology in each.

    Args:
      forecasts: of the topologies.
      price: of a chip in USD an hour; 0: no prices.
    """
    kinds = sorted({kind for forecast in forecasts for kind in forecast.collective_bytes})
    memory = _aligned([_memory_row(forecast) for forecast in forecasts])
    work = _aligned([_work_row(forecast, kinds) for forecast in forecasts])
    speed = _aligned([_speed_row(forecast, price) for forecast in forecasts])
    return (
        f"Memory, GiB per chip:\n{memory}\n\nWork per chip and step:\n{work}\n\n"
        f"Speed of all chips, and the whole run:\n{speed}"
    )


def _memory_row(f: Forecast) -> dict[str, str]:
    sizes = f.memory_gib | {"total": f.total_gib, "usable": f.usable_gib}
    return {
        "topology": str(f.topology),
        "chips": str(f.topology.chips),
        "batch": str(f.run.batch_size),
        "images/chip": f"{f.run.batch_size / f.topology.chips:.4g}",
        **{name: _number(size, 2) for name, size in sizes.items()},
        "fits": "yes" if f.fits else "NO",
    }


def _work_row(f: Forecast, kinds: list[str]) -> dict[str, str]:
    unknown = math.isnan(f.flops)
    moved = {kind: math.nan if unknown else f.collective_bytes.get(kind, 0.0) for kind in kinds}
    devices = f.topology.chip.devices_per_chip
    return {
        "topology": str(f.topology),
        "TFLOP": _number(f.flops * 1e-12, 3),
        "GB moved": _number(f.program.bytes_moved * devices * 1e-9, 1),
        "M cycles": f"{f.program.cycles / 1e6:.1f}" if f.program.cycles else "-",
        **{f"{kind} MB": _number(size * 1e-6, 2) for kind, size in moved.items()},
        "compile time": f"{f.program.compile_seconds:.0f} s",
    }


def _speed_row(f: Forecast, price: float) -> dict[str, str]:
    low, high = f.range
    dollars = {"USD": _number(f.hours * f.topology.chips * price, 0)} if price else {}
    return {
        "topology": str(f.topology),
        "bound": f.bound,
        "step ms": _number(f.step_seconds * 1e3, 1),
        "images/s": _number(f.images_per_second, 0),
        "from": _number(low, 0),
        "to": _number(high, 0),
        "images/s/vCPU": _number(f.decode_per_vcpu, 0),
        "epochs/day": _number(f.images_per_second * 86400 / f.run.training_images, 1),
        "hours": _number(f.hours, 1),
        **dollars,
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
