"""Runs one of the paper's ablations, and tells a table.

    python -m moco_jax.ablate --study=momentum --config=configs/cifar10.py --seeds=3

Each setting of the knob runs with each seed, in a workdir of its own below --out. Interrupted, the
same command goes on: what is done stays done. The table goes to table.md, all numbers to
results.json, and curves to plot.png where matplotlib is installed. The spread is the standard
deviation over seeds, of which the held-out images are a part where a source has no test split;
time and memory are the cost. It runs in one process, on all of its devices.
"""

import dataclasses
import os
import pathlib
import signal
import sys

import jax
from absl import app, flags

from moco_jax import command_line
from moco_jax.ablate import grid, report
from moco_jax.ablate.studies import STUDIES, variants
from moco_jax.training import loop

_STUDY = flags.DEFINE_enum("study", None, sorted(STUDIES), "The knob.")
_VALUES = flags.DEFINE_list("values", [], "Of the knob, in place of the study's own.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each setting.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Folder; default runs/ablate_<study>_<config.name>.")


def main(_) -> None:
    config = command_line.config()
    if _STUDY.value is None:
        command_line.fail(f"give a study: --study={'|'.join(STUDIES)}")
    folder = pathlib.Path(_OUT.value or f"runs/ablate_{_STUDY.value}_{config.get('name')}")
    folder = folder.expanduser().absolute()
    try:
        settings = variants(_STUDY.value, config, _VALUES.value)
        seeds = range(config.seed, config.seed + _SEEDS.value)
        results = grid.run_all(settings, seeds, folder, jax.devices())
        _tell(STUDIES[_STUDY.value].knob, results, folder)
    except (OSError, ValueError) as error:
        command_line.fail(str(error))
    except loop.Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(os.EX_TEMPFAIL if stop.signal == signal.SIGTERM else 130)
    except KeyboardInterrupt:
        print("\nstopped between two runs; the same command goes on", file=sys.stderr)
        sys.exit(130)


def _tell(knob: str, results: list[grid.Result], folder: pathlib.Path) -> None:
    """Writes and prints the table, and draws the plot."""
    text = report.table(knob, results)
    (folder / "table.md").write_text(text + "\n")
    grid.write(folder / "results.json", [dataclasses.asdict(result) for result in results])
    print(f"\n{text}\n")
    try:
        report.plot(knob, results, folder, folder / "plot.png")
    except ImportError:
        print("no plot: `pip install 'moco-jax[plot]'` and the same command draw it")
    print(f"all of it is in {folder}")


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
