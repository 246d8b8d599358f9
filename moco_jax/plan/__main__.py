"""Forecasts whether a run fits on given accelerators and how fast it is; needs none of them.

    python -m moco_jax.plan --config=configs/imagenet.py --topology=v5e:4x4,v5e:16x16
    python -m moco_jax.plan --config=configs/imagenet.py --topology=h100:8

The command compiles the train step of the run, augmentation included, and reads memory, FLOPs,
bytes and collectives from the compiled program. From them it computes the time of a step: the
largest of what matrix units, memory, links and decoding take, over the fraction of it that runs
have reached. Compiled programs:

- TPUs: by the TPU compiler, which needs no TPU (`pip install 'moco-jax[plan]'`).
- GPUs, such as `--topology=h100:8`: by XLA's GPU compiler if JAX for CUDA is installed, which needs
  no GPU. Its memory does not include cuDNN's workspaces.
- GPUs without JAX for CUDA: by the CPU compiler, for as many virtual CPU devices. The collectives
  are right, but the memory is an estimate that is often far too high: the CPU compiler fuses
  differently and computes bfloat16 in float32.

The data set is assumed to be streamed. One that stays in device memory takes up to
`data.resident_megabytes` instead of the printed input. The exit code is 1 if a topology does not
fit.
"""

import sys

import jax
from absl import flags
from ml_collections import ConfigDict

from moco_jax.models.encoder import described_groups, norm_groups
from moco_jax.models.pretexts import contrasts
from moco_jax.parallel.mesh import Layout
from moco_jax.plan import compilers, forecast, planner
from moco_jax.pretraining import fit
from moco_jax.pretraining.method import make_method
from moco_jax.terminal import command_line

_TOPOLOGY = flags.DEFINE_list(
    "topology", None, "Topologies to plan for, such as v5e:4x4,v4:8x8x8,h100:8."
)
_EFFICIENCY = flags.DEFINE_float(
    "efficiency",
    None,
    "Fraction of its bound that a step reaches; default: as measured, see docs/planning.md.",
    1e-3,
    1.0,
)
_DECODES = flags.DEFINE_float(
    "decodes_per_vcpu", forecast.DECODES, "Images/s that a vCPU reads and decodes.", 1e-3
)
_PRICE = flags.DEFINE_float(
    "price", 0.0, "Price of a chip in USD an hour; prints the price of the run.", 0.0
)
_TRAINING_IMAGES = flags.DEFINE_integer(
    "training_images", 1281167, "Number of images in the training set.", lower_bound=1
)
_IMAGES_PER_CHIP = flags.DEFINE_integer(
    "images_per_chip",
    None,
    "Sets batch_size to this times the chips of each topology, to plan weak scaling.",
    lower_bound=1,
)
_LARGEST = flags.DEFINE_integer(
    "largest", 0, "Number of largest collectives to print.", lower_bound=0
)


def main() -> int:
    """Prints the plan; returns 1 if a topology does not fit, else 0."""
    config = command_line.config("pretrain")
    names = [name for name in _TOPOLOGY.value or () if name]
    if not names:
        raise ValueError("give --topology, such as --topology=v5e:4x4,v4:8x8x8 or h100:8")
    topologies = planner.parse_topologies(names)
    compilers.use_only_cpus(topologies)
    cases = planner.prepare(config, topologies, _IMAGES_PER_CHIP.value, _TRAINING_IMAGES.value)
    chosen = fit.fit(config, _TRAINING_IMAGES.value, (), cases[0].layout.devices)[1]
    if chosen and _IMAGES_PER_CHIP.value is None:
        _print_progress("\n".join(chosen))
    plan = planner.Planner(
        _TRAINING_IMAGES.value, _print_progress, _EFFICIENCY.value, _DECODES.value
    )
    forecasts, lines, all_fit = [], [], True
    for case in cases:
        found = plan.forecast(case)
        forecasts.append(found)
        notes = planner.notes(case.config, found, _LARGEST.value)
        # The next topology may take minutes, so show this one now.
        _print_progress("\n".join(["", forecast.table([found], _PRICE.value), "", *notes, ""]))
        lines += notes
        if not found.fits:
            advice, tried = plan.suggest_batch(case, found)
            forecasts += [tried] if tried else []
            lines.append(f"{case.topology}: {advice}")
            all_fit = False
    print(
        f"{_title(cases[0].config, cases[0].layout)}\n\n{forecast.table(forecasts, _PRICE.value)}\n"
    )
    print("\n".join(lines))
    return 0 if all_fit else 1


def _print_progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _title(config: ConfigDict, layout: Layout) -> str:
    """Returns two lines: the planned run and the assumptions."""
    method = make_method(config, layout, _TRAINING_IMAGES.value)
    parameters = sum(x.size for x in jax.tree.leaves(method.abstract_state().params))
    negatives = f"{method.dictionary.num_negatives} negatives, " if contrasts(config) else ""
    return (
        f"{config.name}: {config.model.name}, {parameters / 1e6:.1f} M parameters, {config.dtype}, "
        f"{described_groups(norm_groups(config))}, {negatives}fsdp {config.mesh.fsdp}\n"
        f"{_TRAINING_IMAGES.value} images; times are expected within {forecast.ERROR:.0%}, from "
        "and to are these limits"
    )


if __name__ == "__main__":
    command_line.run_main(main)
