"""Does a run survive a kill? A real run is killed, started again and compared with a whole one."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

from moco_jax import configs
from moco_jax.check.findings import Finding, Verdict
from moco_jax.terminal import signals
from moco_jax.training import workdir
from moco_jax.training.integrity import checkpoint_files, checksums

_NAME = "kill and resume"
_STEPS, _EVERY = 200, 20
_RUN = (
    f"--config.steps={_STEPS}", f"--config.checkpoint_every={_EVERY}", "--config.model.width=0.125",
    "--config.knn.every_epochs=0", "--config.health.images=0", "--config.health.probe=False",
    "--config.drift=False", "--config.log_views=False", "--noreport",
)  # fmt: skip
# Sums of a GPU may have another order in each run otherwise, so that whole runs differ too.
_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_MOST_SECONDS = 240  # of a run
_ADVICE = (
    "a run that is interrupted here is not continued exactly; report this line and the JSON file"
)
_RUN_FAILED_ADVICE = (
    "a run does not work here, killed or not: make the disk and the devices work, or report this "
    "line and the JSON file, which has the end of the run's output"
)
_LOST_ADVICE = (
    "a complete checkpoint was lost: test the disk that --folder names, or report this line and "
    "the JSON file"
)
_NOT_FOR = "must be a multiple of the"  # in the message of a run for other numbers of devices
_LINES = 30  # of the output of a run that failed


class Failed(Exception):
    """A run did not end as it should.

    Attributes:
      log: the last lines of its output.
    """

    def __init__(self, message: str, log: list[str]):
        super().__init__(f"{message}: {_cause(log)}")
        self.log = log


def check(folder: pathlib.Path) -> Finding:
    """Returns whether a killed run ends as a whole one, bit for bit; writes to an empty folder.

    The runs use the devices, so this process must not use them yet.
    """
    try:
        _finish(folder, "whole")
        killed_at = _kill(folder, "killed")
        _finish(folder, "killed")
        resumed_at = _last_start(folder / "killed")
        whole, killed = (_arrays(folder / name) for name in ("whole", "killed"))
    except Failed as error:
        if any(_NOT_FOR in line and "devices" in line for line in error.log):
            text = "the small run of the digits does not divide by the number of devices"
            return Finding(_NAME, Verdict.SKIPPED, text, values={"log": error.log})
        return Finding(_NAME, Verdict.WRONG, str(error), _RUN_FAILED_ADVICE, {"log": error.log})
    except checkpoint_files.Damaged as error:
        return Finding(_NAME, Verdict.WRONG, str(error), _ADVICE)
    different = checksums.unequal(whole, killed)
    values = {
        "killed_at": killed_at, "resumed_at": resumed_at,
        "arrays": len(whole), "different": different,
    }  # fmt: skip
    if resumed_at < killed_at:  # from the beginning, it ends as a whole run too
        text = f"step {killed_at} was saved before the kill, and the run went on at {resumed_at}"
        return Finding(_NAME, Verdict.WRONG, text, _LOST_ADVICE, values)
    if different:
        text = (
            f"killed after step {killed_at} of {_STEPS}: {len(different)} of {len(whole)} arrays "
            f"differ from a whole run: {checksums.listed(different)}"
        )
        return Finding(_NAME, Verdict.WRONG, text, _ADVICE, values)
    text = f"killed after step {killed_at} of {_STEPS}; all {len(whole)} arrays equal, bit for bit"
    return Finding(_NAME, Verdict.OK, text, values=values)


def _start(folder: pathlib.Path, name: str) -> subprocess.Popen:
    """Starts the run in the workdir `folder/name`; its output goes to `folder/name.log`."""
    command = [sys.executable, "-m", "moco_jax.main", f"--config={configs.FOLDER / 'digits.py'}"]
    # One program for both runs: a GPU's compiler tries kernels, and may choose others next time.
    environment = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_DETERMINISTIC}",
    }
    with open(folder / f"{name}.log", "ab") as log:
        return subprocess.Popen(
            [*command, *_RUN, f"--workdir={folder / name}"],
            env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip


@contextlib.contextmanager
def _running(folder: pathlib.Path, name: str) -> Iterator[subprocess.Popen]:
    """Starts a run; it has ended at the end of the block, also if a signal ends the block."""
    started: list[subprocess.Popen] = []

    def end() -> None:
        for process in started:
            process.kill()
            process.wait()  # it may still write to the folder

    with signals.undone(end):
        with signals.delayed():
            started.append(_start(folder, name))
        yield started[0]


def _finish(folder: pathlib.Path, name: str) -> None:
    """Runs until the end.

    Raises:
      Failed: if the run fails or takes too long.
    """
    with _running(folder, name) as process:
        try:
            code = process.wait(_MOST_SECONDS)
        except subprocess.TimeoutExpired:
            log = _log(folder, name)
            raise Failed(f"a small run took more than {_MOST_SECONDS} s", log) from None
    if code:
        raise Failed(f"a small run ended with the exit code {code}", _log(folder, name))


def _kill(folder: pathlib.Path, name: str) -> int:
    """Kills a run as soon as it has a checkpoint; returns the step of that checkpoint.

    Raises:
      Failed: if the run ends before.
    """
    with _running(folder, name) as process:
        deadline = time.monotonic() + _MOST_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if saved := checkpoint_files.steps(folder / name / "checkpoints"):
                return saved[0]  # the end of the block kills it
            time.sleep(0.02)
    what = "ended before it was killed" if process.returncode == 0 else "saved nothing"
    raise Failed(f"a small run {what}", _log(folder, name))


def _log(folder: pathlib.Path, name: str) -> list[str]:
    """Returns the last lines of a run's output, without empty ones."""
    lines = (folder / f"{name}.log").read_text(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-_LINES:]


def _cause(log: list[str]) -> str:
    """Returns the line that says why a run failed: its error message, or else the last line."""
    errors = [line for line in log if line.startswith("error: ")]
    return (errors or log or ["no output"])[-1].strip()[:300]


def _last_start(run: pathlib.Path) -> int:
    """Returns the step at which the last start of a run went on."""
    return json.loads((run / workdir.STARTS).read_text().splitlines()[-1])["step"]


def _arrays(run: pathlib.Path) -> dict[str, list]:
    """Returns the checksums of the last checkpoint."""
    return checkpoint_files.read_about(run / "checkpoints" / str(_STEPS))["arrays"]
