"""Runs one of the paper's ablations, or compares pretexts, and prints a table.

    python -m moco_jax.ablate --study=momentum --config=configs/cifar10.py --seeds=3
    python -m moco_jax.ablate --study=momentum --config=configs/digits.py --values=0.9,0.99
    python -m moco_jax.ablate --study=pretext --config=configs/digits.py --seeds=2 --dry_run

Each value of the knob runs with each seed, in its own workdir below --out. After an interruption
the same command resumes; finished runs are not repeated. The command writes the table to table.md,
all numbers to results.json, and curves to plot.png if matplotlib is installed. The table gives mean
and spread, time and memory. The spread is the standard deviation over seeds; if the source has no
test split, the seed also chooses the held-out images. One process runs on all of its devices.

--study=pretext compares experiments that differ in what the network learns from: contrastive,
masked, both, and masked, then contrastive. Each is judged by kNN, a linear classifier and
fine-tuning, beside an untrained network. With --budget=steps all have the steps of the contrastive
arm, with --budget=compute as many as cost its floating-point operations. The plan is printed before
it starts; changes of --config apply to each arm.
"""

import dataclasses
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from moco_jax.ablate import arms, grid, pretext, pretext_report, pretext_runs, report
from moco_jax.ablate.studies import STUDIES, variants
from moco_jax.data.sources.opening import open_named
from moco_jax.pretraining import fit
from moco_jax.supervised import evaluate
from moco_jax.terminal import arguments, command_line, progress, style
from moco_jax.training import loop

_PRETEXT = "pretext"
_STUDY = flags.DEFINE_enum("study", None, sorted([*STUDIES, _PRETEXT]), "What to compare.")
_VALUES = flags.DEFINE_list("values", [], "Values of the knob; default the study's.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs per value or arm.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Output folder; default runs/ablate_<study>_<config.name>.")
_ARMS = flags.DEFINE_list(
    "arms",
    [],
    f"pretext: arms of {', '.join(arms.ARMS)}; default all. NAME=FILE:VARIANT gives an arm its "
    "experiment; default the variants "
    f"{', '.join(arms.VARIANTS.values())} of --config.",
)
_BUDGET = flags.DEFINE_enum(
    "budget", "both", [*pretext.BUDGETS, "both"], "pretext: what is equal in all arms."
)
_LINEAR = flags.DEFINE_string(
    "linear", None, "pretext: experiment of the linear classifier; default that of the images."
)
_FINETUNE = flags.DEFINE_string(
    "finetune", None, "pretext: experiment of fine-tuning; default that of the images."
)
_LINEAR_EPOCHS = flags.DEFINE_float(
    "linear_epochs", None, "pretext: epochs of --linear; default its own.", lower_bound=1e-3
)
_FINETUNE_EPOCHS = flags.DEFINE_float(
    "finetune_epochs", None, "pretext: epochs of --finetune; default its own.", lower_bound=1e-3
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "pretext: print the plan and stop.")
_OF_PRETEXT = (_ARMS, _BUDGET, _LINEAR, _FINETUNE, _LINEAR_EPOCHS, _FINETUNE_EPOCHS, _DRY_RUN)


def main() -> int:
    """Runs the study; returns the exit code."""
    config = command_line.config("pretrain")
    if _STUDY.value is None:
        command_line.fail(f"--study must be given; allowed: {', '.join([*STUDIES, _PRETEXT])}")
    _check_flags()
    folder = command_line.on_disk(_OUT.value or f"runs/ablate_{_STUDY.value}_{config.get('name')}")
    folder = folder.absolute()
    try:
        if _STUDY.value == _PRETEXT:
            _compare_pretexts(config, folder)
        else:
            _vary(_STUDY.value, config, folder)
    except loop.Interrupted as stop:
        style.print_line(f"\n{stop}", sys.stderr)
        return os.EX_TEMPFAIL if stop.signal == signal.SIGTERM else 130
    return 0


def _check_flags() -> None:
    """Ends the process if a flag of another study was given."""
    unused = (_VALUES,) if _STUDY.value == _PRETEXT else _OF_PRETEXT
    for flag in unused:
        if flags.FLAGS[flag.name].present:
            command_line.fail(f"--{flag.name} has no effect with --study={_STUDY.value}")


def _seeds(config: ConfigDict) -> range:
    return range(config.seed, config.seed + _SEEDS.value)


def _vary(study: str, config: ConfigDict, folder: pathlib.Path) -> None:
    """Runs a study of one knob."""
    if fit.open_keys(config):  # all runs of the study have the same values
        config, _, lines = fit.prepared(config, jax.device_count())
        command_line.tell(lines)
    chosen = variants(study, config, _VALUES.value)
    results = grid.run_all(chosen, _seeds(config), folder, jax.devices())
    knob = STUDIES[study].knob
    _write(report.table(knob, results), results, folder)
    _plot(lambda out: report.plot(knob, results, folder, out), folder)


def _compare_pretexts(config: ConfigDict, folder: pathlib.Path) -> None:
    """Plans the study of pretexts, prints the plan and runs it."""
    file, devices = arguments.filename(), jax.devices()
    changes = config_flags.get_override_values(flags.FLAGS["config"])
    chosen, files = arms.parse(_ARMS.value, file)
    configs, lines = arms.configs(chosen, files, changes, len(devices))
    command_line.tell(lines)
    network = configs["contrastive"]
    evaluations = {
        task: arms.evaluation(flag.value, task, network, file, epochs.value)
        for task, flag, epochs in (
            ("linear", _LINEAR, _LINEAR_EPOCHS),
            ("finetune", _FINETUNE, _FINETUNE_EPOCHS),
        )
    }
    pretext_runs.check(configs, evaluations, len(devices))
    images = len(open_named(network).train)
    with progress.phase("counting the operations of a step"):
        record = None if _DRY_RUN.value else folder / "flops.json"
        flops = pretext.flops_once(configs, images, record)
    budgets = pretext.BUDGETS if _BUDGET.value == "both" else (_BUDGET.value,)
    jobs, seeds = pretext.plan(configs, chosen, budgets, flops, images), _seeds(config)
    count, numbers = len(jobs), ", ".join(map(str, seeds))
    print(f"the plan: {count} runs with each seed ({numbers}), on {images:,} images\n")
    command_line.print_rows(pretext_report.listing(jobs), pretext_report.PLAN, "table")
    for task, found in evaluations.items():
        length = f"{found.steps} steps" if found.epochs is None else f"{found.epochs:g} epochs"
        print(f"then {task}: {found.name}, {length}", flush=True)
    if _DRY_RUN.value:
        return
    results = pretext_runs.run_all(jobs, seeds, folder, evaluations, network, devices)
    _write(pretext_report.table(results), results, folder)
    _plot(lambda out: pretext_report.plot(results, out), folder)


def _write(text: str, results: list[Any], folder: pathlib.Path) -> None:
    """Prints the table; writes it and the results to the folder."""
    (folder / "table.md").write_text(text + "\n")
    grid.write(folder / "results.json", [dataclasses.asdict(result) for result in results])
    print(f"\n{text}\n")


def _plot(draw: Callable[[pathlib.Path], None], folder: pathlib.Path) -> None:
    """Draws the plot to the folder, if matplotlib is installed."""
    try:
        draw(folder / "plot.png")
    except ImportError:
        print("no plot: run `pip install 'moco-jax[plot]'`, then the same command")
    print(f"results are in {folder}")


if __name__ == "__main__":
    command_line.run_main(
        main,
        errors=(evaluate.FrozenMoved,),
        interrupted="interrupted between two runs; the same command resumes",
        saves=True,
    )
