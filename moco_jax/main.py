"""Runs an experiment from the command line: `python -m moco_jax.main --config=configs/digits.py`.

Exit codes: 0 done; 1 not all processes came, or a crash; 2 a problem, told in one message; 75
stopped by SIGTERM and saved, to be started again with the same command; 130 stopped by Ctrl-C and
saved. This file is kept short: flags, and one call.
"""

import os
import signal
import sys

from absl import app, flags, logging

from moco_jax import command_line
from moco_jax.parallel import cluster, roll_call
from moco_jax.pretraining import pretrain
from moco_jax.segmentation import segment
from moco_jax.supervised import evaluate as supervised
from moco_jax.training import loop

# What a config's `task` may ask for.
TASKS = {
    "pretrain": pretrain.pretrain,
    "linear": supervised.evaluate,
    "finetune": supervised.evaluate,
    "segment": segment.segment,
}

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config.name>.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, where the cluster is not found by itself."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, likewise.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0, likewise.")
_JOIN_TIMEOUT = flags.DEFINE_integer(
    "join_timeout", 300, "Seconds to wait for all processes to come.", lower_bound=1
)

_EXIT_CODES = {signal.SIGTERM: os.EX_TEMPFAIL, signal.SIGINT: 130}


def main(_) -> None:
    config = command_line.config()
    code = 0
    # Until there is something to save; as the first process of a container it would be deaf.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_EXIT_CODES[signal.SIGTERM]))
    try:
        with cluster.joined(
            coordinator=_COORDINATOR.value,
            processes=_PROCESSES.value,
            process=_PROCESS.value,
            timeout=_JOIN_TIMEOUT.value,
        ):
            code = _run(config)
    except cluster.WrongFlags as error:
        command_line.fail(str(error))
    except roll_call.Missing as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if code:
        sys.stdout.flush()
        os._exit(code)  # a thread may be compiling, and can't be stopped


def _run(config) -> int:
    """Returns the exit code."""
    try:
        if config.get("task") not in TASKS:
            known = ", ".join(TASKS)
            raise ValueError(f"task={config.get('task')!r} is unknown; known: {known}")
        TASKS[config.task](config, _WORKDIR.value or f"runs/{config.name}")
    except (OSError, ValueError, loop.NotFinite, supervised.FrozenMoved) as error:
        if logging.level_debug():
            raise
        command_line.fail(f"{error}\n(--verbosity=1 shows where)")
    except loop.Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr, flush=True)
        return _EXIT_CODES[stop.signal]
    except KeyboardInterrupt:
        print("\nstopped; what follows the last checkpoint is not saved", file=sys.stderr)
        return 130
    return 0


def run() -> None:
    """The entry point of `python -m moco_jax.main` and of the `moco-jax` command."""
    app.run(main, flags_parser=command_line.parse)


if __name__ == "__main__":
    run()
