"""Plans a run: which topologies to compile for, whether they fit, and which batch size would."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries.queue import keys_per_step
from moco_jax.models.pretexts import effective
from moco_jax.parallel.mesh import Layout, make_layout
from moco_jax.plan import compilers, nvidia, topology
from moco_jax.plan.collectives import excess_image_moves
from moco_jax.plan.forecast import DECODES, Forecast, run_of
from moco_jax.plan.program import Program, abstract_step, compile_program, counted_flops
from moco_jax.plan.topology import Topology
from moco_jax.pretraining import fit, validation
from moco_jax.terminal import progress

_MAX_SECONDS = 400  # a smaller batch is compiled, too, if the first compilation took at most this


class Case(NamedTuple):
    """A run on a topology."""

    config: ConfigDict  # validated for the topology
    topology: Topology
    layout: Layout  # of the target devices


@dataclasses.dataclass(frozen=True)
class Planner:
    """Compiles the train step of a run for topologies."""

    training_images: int
    report: Callable[[str], None]  # called with a line of text before each compilation
    efficiency: float | None = None  # see `Forecast`
    decodes: float = DECODES  # images/s that a vCPU decodes

    def forecast(self, case: Case) -> Forecast:
        """Returns the forecast of a case; compiles its step, which takes minutes."""
        config, place, layout = case
        self.report(
            f"{place}: compiling the step for {layout.devices} devices, "
            f"{config.batch_size} images ..."
        )
        with progress.phase(f"{place}: compiling", "usually 1 to 5 min", announced=True):
            program = self._compiled(config, place, layout)
        run = run_of(config, self.training_images)
        return Forecast(place, program, run, self.efficiency, self.decodes)

    def _compiled(self, config: ConfigDict, place: Topology, layout: Layout) -> Program:
        program = compile_program(*abstract_step(config, layout, self.training_images))
        if program.refusal:
            return program
        if program.platform == "gpu":
            # The GPU compiler does not count floating-point operations.
            cpus = make_layout(compilers.cpus(place), **config.mesh)
            flops = counted_flops(config, cpus, self.training_images)
        elif config.microbatches > 1:
            # Other compilers count the loop over the parts as one part.
            one = make_layout(jax.devices("cpu")[:1])
            flops = counted_flops(config, one, self.training_images) / layout.devices
        else:
            return program
        return dataclasses.replace(program, flops=flops)

    def suggest_batch(self, case: Case, found: Forecast) -> tuple[str, Forecast | None]:
        """Returns advice on the batch size for a case whose forecast `found` does not fit.

        The second value is the forecast of the suggested batch size if it was compiled, else None.
        """
        batch = largest_valid_batch(case, found.estimated_largest_batch())
        if batch is None or batch >= case.config.batch_size:
            return "no smaller batch_size is expected to fit on this topology", None
        if found.program.compile_seconds > _MAX_SECONDS:
            return f"batch_size={batch} should fit (estimated, not compiled)", None
        smaller = case.config.copy_and_resolve_references()
        smaller.batch_size = batch
        tried = self.forecast(case._replace(config=smaller))
        if tried.fits:
            return f"batch_size={batch} fits (compiled)", tried
        return f"batch_size={batch} was estimated to fit, but does not (compiled)", tried


def parse_topologies(names: list[str]) -> list[Topology]:
    """Returns the topologies of these names; loads no compiler.

    Raises:
      ValueError: for a malformed name.
      ModuleNotFoundError: if the compiler for one is not installed.
    """
    found = [topology.parse(name) for name in names]
    if any(place.chip.is_tpu for place in found):
        topology.check_compiler()
    return found


def prepare(
    config: ConfigDict,
    topologies: list[Topology],
    images_per_chip: int | None = None,
    training_images: int = 0,
) -> list[Case]:
    """Returns the case of each topology; compiles nothing.

    `images_per_chip` replaces the batch size of the config. Keys that the config leaves to the
    data fit `training_images`.

    Raises:
      ValueError: names each problem of each topology, or of the config on it.
    """
    cases, problems = [], []
    for place in topologies:
        try:
            devices = compilers.devices(place)
            own = copy.deepcopy(config)
            if images_per_chip is not None:
                own.batch_size = images_per_chip * place.chips
            own, _ = fit.fit(own, training_images, (), len(devices))
            validation.check(own, len(devices))
            cases.append(Case(own, place, make_layout(devices, **own.mesh)))
        except ValueError as error:
            problems.append(f"{place}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return cases


def largest_valid_batch(case: Case, limit: float) -> int | None:
    """Returns the largest batch size up to `limit` that the config allows, None without one."""
    smaller, devices = case.config.copy_and_resolve_references(), case.layout.devices
    for batch in range(int(limit) // devices * devices, 0, -devices):
        smaller.batch_size = batch
        # The full validation takes longer than this.
        looks_up = effective(smaller).dictionary == "queue"
        if looks_up and smaller.queue_size % keys_per_step(smaller):
            continue
        with contextlib.suppress(ValueError):
            validation.check(smaller, devices)
            return batch
    return None


def notes(config: ConfigDict, found: Forecast, largest: int = 0) -> list[str]:
    """Returns the limits of a forecast, a line each, and its `largest` largest collectives."""
    place, chip, program = found.topology, found.topology.chip, found.program
    moves, lines = program.collectives, []
    if not found.fits:
        reason = program.refusal or f"needs {found.total_gib:.2f} of {found.usable_gib:.2f} GiB"
        lines.append(f"does NOT fit: {reason}")
    if program.platform == "cpu":
        lines.append(
            "memory is an estimate by the CPU compiler, often far too high, and the time is that "
            "of the matrix units, often far too short; to use the GPU compiler (no GPU is "
            f"needed): {nvidia.INSTALL}"
        )
    if program.platform == "gpu":
        lines.append("cuDNN's workspaces are not included in the temporaries")
    if not chip.is_tpu:
        lines.append("the usable memory is what JAX allocates on a GPU by default")
        if place.hosts > 1:
            lines.append("the network between hosts is not part of the time: it may be slower")
    lines.append(f"a step is expected to reach {found.reached:.0%} of its bound (--efficiency)")
    if found.run.streamed:
        rate = f"{found.decodes:g} images/s (--decodes_per_vcpu)"
        lines.append(f"a vCPU is expected to read and decode {rate}")
    else:
        lines.append("the images are decoded once, into device memory (data.resident_megabytes)")
    images = config.batch_size / place.devices
    sides = {"view": config.data.image_size, "canvas": config.data.canvas}
    for move in excess_image_moves(moves, images=images, **sides):
        lines.append(f"a collective moves more images than the shuffle needs: {move}")
    if any(move.times is None for move in moves):
        lines.append("collectives in loops of unknown length are counted once")
    if chip.unsourced:
        lines.append(f"no source was found for {', '.join(chip.unsourced)} of the {chip.title}")
    ranked = sorted(moves, key=lambda move: move.bytes_per_step, reverse=True)
    lines += [f"{move.bytes / 1e6:10.3f} MB  {move}" for move in ranked[:largest]]
    return [f"{place}: {line}" for line in lines]
