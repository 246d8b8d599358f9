"""Will a run fit on a pod, and how fast may it be? Told by the compiler, before a cent is spent.

    python -m moco_jax.plan --config=configs/imagenet.py --topology=v5e:4x4,v5e:16x16

The very train step is compiled, augmentation included, by the TPU compiler, which needs no TPU
(`pip install 'moco-jax[plan]'`). For `--topology=h100:8` XLA's compiler for GPUs does it, which
needs no GPU either, where JAX for CUDA is installed; cuDNN's workspaces come on top of what it
tells. Elsewhere the step is compiled for as many virtual CPU devices. That gives the collectives of
the partitioned program, and an estimate of memory that is often far too high: the CPU's compiler
fuses otherwise, and computes bfloat16 in float32.

Data are taken to be streamed. A data set that stays in device memory takes up to
`data.resident_megabytes` in place of what is said for the input. The exit code is 1 if a topology
does not fit.
"""

import dataclasses
import sys

import jax
from absl import app, flags
from ml_collections import ConfigDict

from moco_jax import command_line
from moco_jax.config import keys_per_step
from moco_jax.contrastive.dictionaries import negatives
from moco_jax.data.loading.streamed import MOST_ON_DEVICES
from moco_jax.parallel.mesh import Layout, make_layout
from moco_jax.plan import compilers, forecast, nvidia, topology
from moco_jax.plan.collectives import image_movers
from moco_jax.plan.forecast import Forecast
from moco_jax.plan.program import abstract_step, compiled, counted_flops
from moco_jax.plan.topology import Topology
from moco_jax.pretraining import validation

_TOPOLOGY = flags.DEFINE_list("topology", None, "Such as v5e:4x4,v4:8x8x8,h100:8.", required=False)
_MFU = flags.DEFINE_float(
    "mfu", 0.4, "Fraction of the peak FLOP/s.", 1e-3, 1.0, allow_override=True
)
_TRAINING_IMAGES = flags.DEFINE_integer(
    "training_images", 1281167, "In the training set.", lower_bound=1
)
_IMAGES_PER_CHIP = flags.DEFINE_integer(
    "images_per_chip", None, "In place of batch_size: weak scaling over topologies.", lower_bound=1
)
_LARGEST = flags.DEFINE_integer("largest", 0, "Tells this many largest collectives.", lower_bound=0)

_CHEAP = 400  # seconds of compiling, below which a batch that should fit is compiled too


def fitting_batch(config: ConfigDict, devices: int, most: float) -> int | None:
    """Returns the largest allowed batch up to `most` images, None if there is none."""
    smaller = config.copy_and_resolve_references()
    for batch in range(int(most) // devices * devices, 0, -devices):
        smaller.batch_size = batch
        # Before the whole check, which takes longer.
        if config.dictionary == "queue" and config.queue_size % keys_per_step(smaller):
            continue
        try:
            validation.check(smaller, devices)
            return batch
        except ValueError:
            continue
    return None


def _forecast(config: ConfigDict, place: Topology, layout: Layout) -> Forecast:
    say(f"{place}: compiling the step for {layout.devices} devices, {config.batch_size} images ...")
    program = compiled(*abstract_step(config, layout, _TRAINING_IMAGES.value))
    if program.platform == "gpu" and not program.refusal:
        cpus = make_layout(compilers.cpus(place), **config.mesh)
        flops = counted_flops(
            config, cpus, _TRAINING_IMAGES.value
        )  # which that compiler doesn't tell
        program = dataclasses.replace(program, flops=flops)
    waiting = MOST_ON_DEVICES - 1
    return Forecast(place, program, config.batch_size, waiting, _MFU.value, _TRAINING_IMAGES.value)


def say(message: str) -> None:
    """Tells how far it is, beside the table."""
    print(message, file=sys.stderr, flush=True)


def remedy(config: ConfigDict, found: Forecast, layout: Layout) -> tuple[str, Forecast | None]:
    """Returns which batch would fit, and its forecast where it was compiled."""
    most = found.most_images()
    batch = None if most is None else fitting_batch(config, layout.devices, most)
    if batch is None or batch >= config.batch_size:
        return "no smaller batch is sure to fit on so many chips", None
    if found.program.seconds > _CHEAP:
        return f"batch_size={batch} should fit (estimated, not compiled)", None
    smaller = config.copy_and_resolve_references()
    smaller.batch_size = batch
    tried = _forecast(smaller, found.topology, layout)
    if tried.fits:
        return f"batch_size={batch} fits (compiled)", tried
    return f"batch_size={batch} was estimated to fit, and compiled does not", tried


def notes(config: ConfigDict, found: Forecast, largest: int = 0) -> list[str]:
    """Returns what a row of the table doesn't tell, and so many of the largest collectives."""
    place, chip, lines = found.topology, found.topology.chip, []
    if not found.fits:
        reason = found.program.refusal or f"{found.total_gib:.2f} of {found.usable_gib:.2f} GiB"
        lines.append(f"does NOT fit: {reason}")
    if found.program.platform == "cpu":
        lines.append(
            "memory is an estimate from a compilation for CPUs, often far too high; the compiler "
            f"for GPUs, which needs no GPU, comes with {nvidia.INSTALL}"
        )
    if found.program.platform == "gpu":
        lines.append("cuDNN's workspaces come on top of these temporaries")
    if not chip.is_tpu:
        lines.append("usable is what JAX takes of a GPU's memory by default")
        if config.dtype == "float32":
            lines.append("float32 products run at half the bfloat16 peak (TF32) or less")
    images = config.batch_size / place.devices
    sides = {"view": config.data.image_size, "canvas": config.data.canvas}
    for mover in image_movers(found.program.moved, images=images, **sides):
        lines.append(f"moves more images than a chip's own: {mover}")
    if any(collective.times is None for collective in found.program.moved):
        lines.append("has collectives in loops of unknown length, counted once")
    if chip.unsure:
        lines.append(f"no source was found for {', '.join(chip.unsure)} of the {chip.title}")
    ranked = sorted(found.program.moved, key=lambda c: c.bytes * (c.times or 1), reverse=True)
    lines += [f"{c.bytes / 1e6:10.3f} MB  {c}" for c in ranked[:largest]]
    return [f"{place}: {line}" for line in lines]


def places(names: list[str]) -> list[Topology]:
    """Returns the topologies of these names, nothing loaded yet.

    Raises:
      ValueError: if one is malformed.
      ModuleNotFoundError: if the compiler for one is not installed.
    """
    found = [topology.parse(name) for name in names if name]
    if any(place.chip.is_tpu for place in found):
        topology.check_compiler()
    return found


def prepare(
    config: ConfigDict, asked: list[Topology], images: int | None = None
) -> list[tuple[ConfigDict, Topology, Layout]]:
    """Returns each topology, its config, and where arrays lie, before anything long begins.

    Args:
      config: of the run.
      asked: the topologies.
      images: a chip; default by the config's batch size.

    Raises:
      ValueError: for every topology, what is wrong with it or with the config on it.
    """
    prepared, problems = [], []
    for place in asked:
        try:
            devices = compilers.devices(place)
            own = config.copy_and_resolve_references()
            if images is not None:
                own.batch_size = images * place.chips
            validation.check(own, len(devices))
            prepared.append((own, place, make_layout(devices, **own.mesh)))
        except ValueError as error:
            problems.append(f"{place}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return prepared


def main(_) -> None:
    config = command_line.config()
    if not _TOPOLOGY.value:
        command_line.fail("give a topology, such as --topology=v5e:4x4,v4:8x8x8 or h100:8")
    try:
        asked = places(_TOPOLOGY.value)
        compilers.use_only_cpus(asked)
        prepared = prepare(config, asked, _IMAGES_PER_CHIP.value)
    except (ValueError, ModuleNotFoundError) as error:
        command_line.fail(str(error))
    forecasts, lines, fit = [], [], True
    for own, place, layout in prepared:
        found = _forecast(own, place, layout)
        forecasts.append(found)
        told = notes(own, found, _LARGEST.value)
        say("\n".join(["", forecast.table([found]), "", *told, ""]))  # the next may take long
        lines += told
        if not found.fits:
            advice, tried = remedy(own, found, layout)
            forecasts += [tried] if tried else []
            lines.append(f"{place}: {advice}")
            fit = False
    print(f"{_title(config, prepared[0][2])}\n\n{forecast.table(forecasts)}\n")
    print("\n".join(lines))
    sys.exit(0 if fit else 1)


def _title(config: ConfigDict, layout: Layout) -> str:
    """Returns in two lines what is planned, and by which assumptions."""
    _, state, *_ = abstract_step(config, layout, _TRAINING_IMAGES.value)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    return (
        f"{config.name}: {config.model.name}, {parameters / 1e6:.1f} M parameters, {config.dtype}, "
        f"{config.bn_groups} batch-norm groups, {negatives(config)} negatives, "
        f"fsdp {config.mesh.fsdp}\n"
        f"{_TRAINING_IMAGES.value} images; {_MFU.value:.0%} of the bfloat16 peak is assumed"
    )


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
