"""Runs an experiment: pretraining, linear protocol, fine-tuning or segmentation.

    python -m moco_jax.main --config=configs/digits.py
    python -m moco_jax.main --config=configs/folder.py:/path/to/images --workdir=runs/first
    python -m moco_jax.main --config=configs/digits_linear.py --config.lr=0.1,1,10

The same command continues an interrupted run.

Exit codes:

- 0: done.
- 1: not all processes joined, the last state can't be saved or is not in the bucket of the workdir,
  or a crash.
- 2: a problem that the message names.
- 75: stopped by SIGTERM, start the same command again. The state is saved, if a step was done.
  Before the first step there is nothing to save, and the code is the same: a launcher must bound
  how often it starts a run that makes no progress.
- 130: stopped by Ctrl-C with the state saved. A second Ctrl-C ends the process at once, also with
  130; the message says what is saved.
"""

import os
import pathlib
import signal
import sys

import jax
from absl import flags
from ml_collections import ConfigDict

from moco_jax.parallel import cluster
from moco_jax.terminal import command_line, processes, style

# Functions import what runs: the help and an error of the flags come in half the time.


def _pretrain(config: ConfigDict, folder: pathlib.Path) -> None:
    from moco_jax.pretraining.pretrain import pretrain

    pretrain(config, folder)


def _evaluate(config: ConfigDict, folder: pathlib.Path) -> None:
    from moco_jax.supervised.evaluate import FrozenMoved, evaluate

    try:
        evaluate(config, folder)
    except FrozenMoved as error:
        raise ValueError(str(error)) from error


def _segment(config: ConfigDict, folder: pathlib.Path) -> None:
    from moco_jax.segmentation.segment import segment

    segment(config, folder)


TASKS = {  # by the config's `task`
    "pretrain": _pretrain,
    "linear": _evaluate,
    "finetune": _evaluate,
    "segment": _segment,
}

_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, or its URL such as s3://bucket/runs/a; default runs/<config.name>.",
)
flags.adopt_module_key_flags(processes)
_REPORT = flags.DEFINE_bool("report", True, "At the end, write report.html to the workdir.")

_EXIT_CODES = {signal.SIGTERM: os.EX_TEMPFAIL, signal.SIGINT: 130}


def main() -> int:
    """Runs the task of the config; returns the exit code."""
    from moco_jax.training import checkpoints, loop
    from moco_jax.training.remote import run as remote

    config = command_line.config()
    if config.get("task") not in TASKS:
        raise ValueError(f"task={config.get('task')!r} is unknown; allowed: {', '.join(TASKS)}")
    try:
        with remote.opened(_WORKDIR.value or f"runs/{config.name}") as folder:
            _run(config, folder)
    except loop.Interrupted as stop:
        return _EXIT_CODES[stop.signal]
    except loop.NotFinite as error:
        raise ValueError(str(error)) from error
    except checkpoints.NotSaved as error:
        style.print_line(f"\nerror: {error}", sys.stderr)
        sys.exit(1)  # at once: other processes may wait for this one in a step
    return 0


def _run(config: ConfigDict, folder: pathlib.Path) -> None:
    """Runs the task and writes the report."""
    from moco_jax.training import loop

    try:
        TASKS[config.task](config, folder)
    except loop.Interrupted as stop:
        style.print_line(f"\n{stop}", sys.stderr)
        if stop.signal == signal.SIGINT:  # after SIGTERM there may be little time
            _write_report(folder, views=False)
        raise
    _write_report(folder, views=True)


def _write_report(folder: pathlib.Path, *, views: bool) -> None:
    from moco_jax.pages import writing
    from moco_jax.training.outputs import ending

    if _REPORT.value and cluster.is_first() and (folder / "metrics.jsonl").is_file():
        views = views and jax.process_count() == 1  # the others do not take part
        if file := writing.write_at_end(folder, views=views):
            style.print_line(f"the report is in {ending.shown(file)}", sys.stderr)


def _joined():
    # Until there is something to save. The first process of a container ignores SIGTERM otherwise.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_EXIT_CODES[signal.SIGTERM]))
    return processes.joined()


def run() -> None:
    """The entry point of `python -m moco_jax.main` and of the `moco-jax` command."""
    command_line.run_main(
        main,
        join=_joined,
        interrupted="stopped; the work since the newest checkpoint is not saved",
        saves=True,
    )


if __name__ == "__main__":
    run()
