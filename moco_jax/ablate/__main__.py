"""Runs one of the paper's ablations and prints a table.

    python -m moco_jax.ablate --study=momentum --config=configs/cifar10.py --seeds=3
    python -m moco_jax.ablate --study=momentum --config=configs/digits.py --values=0.9,0.99

Each value of the knob runs with each seed, in its own workdir below --out. After an interruption
the same command resumes; finished runs are not repeated. The command writes the table to table.md,
all numbers to results.json, and curves to plot.png if matplotlib is installed. The table gives mean
and spread, time and memory. The spread is the standard deviation over seeds; if the source has no
test split, the seed also chooses the held-out images. One process runs on all of its devices.
"""

import dataclasses
import os
import pathlib
import signal
import sys

import jax
from absl import flags

from moco_jax.ablate import grid, report
from moco_jax.ablate.studies import STUDIES, variants
from moco_jax.pretraining import fit
from moco_jax.terminal import command_line, style
from moco_jax.training import loop

_STUDY = flags.DEFINE_enum("study", None, sorted(STUDIES), "Knob to vary.")
_VALUES = flags.DEFINE_list("values", [], "Values of the knob; default the study's.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs per value.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Output folder; default runs/ablate_<study>_<config.name>.")


def main() -> int:
    """Runs the study; returns the exit code."""
    config = command_line.config("pretrain")
    if _STUDY.value is None:
        command_line.fail(f"--study must be given; allowed: {', '.join(STUDIES)}")
    if fit.open_keys(config):  # all runs of the study have the same values
        config, _, lines = fit.prepared(config, jax.device_count())
        command_line.tell(lines)
    folder = pathlib.Path(_OUT.value or f"runs/ablate_{_STUDY.value}_{config.get('name')}")
    folder = folder.expanduser().absolute()
    chosen = variants(_STUDY.value, config, _VALUES.value)
    seeds = range(config.seed, config.seed + _SEEDS.value)
    try:
        results = grid.run_all(chosen, seeds, folder, jax.devices())
    except loop.Interrupted as stop:
        style.print_line(f"\n{stop}", sys.stderr)
        return os.EX_TEMPFAIL if stop.signal == signal.SIGTERM else 130
    _report(STUDIES[_STUDY.value].knob, results, folder)
    return 0


def _report(knob: str, results: list[grid.Result], folder: pathlib.Path) -> None:
    """Prints the table; writes it, the results and the plot to the folder."""
    text = report.table(knob, results)
    (folder / "table.md").write_text(text + "\n")
    grid.write(folder / "results.json", [dataclasses.asdict(result) for result in results])
    print(f"\n{text}\n")
    try:
        report.plot(knob, results, folder, folder / "plot.png")
    except ImportError:
        print("no plot: run `pip install 'moco-jax[plot]'`, then the same command")
    print(f"results are in {folder}")


if __name__ == "__main__":
    command_line.run_main(
        main, interrupted="interrupted between two runs; the same command resumes", saves=True
    )
