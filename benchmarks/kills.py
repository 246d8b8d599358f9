"""Kills a run at random moments, restarts it until it finishes, and compares it with a whole run.

Command: python -m benchmarks.kills --kills=100 --seed=0
  --signal=TERM   sends SIGTERM instead of SIGKILL: every exit code must be 75

A short run of configs/digits.py logs, saves and evaluates every few steps. It first runs without
interruption. Then it is killed and started again, in as many workdirs as the kills need. The kills
come at random times after the start of the process or of the training; a third of them then wait
until the run saves or evaluates.

Compares every line of metrics.jsonl in all values that do not measure time, and all arrays of the
last checkpoint bit for bit. Prints each kill, a summary and every difference; the exit code is 1 if
there is one.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

_REPOSITORY = pathlib.Path(__file__).parents[1]
_STEPS = 300
_RUN = (
    "--config=configs/digits.py", f"--config.steps={_STEPS}", "--config.model.width=0.125",
    "--config.log_every=3", "--config.checkpoint_every=10", "--config.knn.every_epochs=0.25",
    "--config.knn.bank=2000", "--config.knn.queries=400",
)  # fmt: skip
# Values that two equal runs do not share: they measure time.
_MEASURED = ("images_per_second", "seconds_per_step", "data_wait_percent")
_PATIENCE = 300  # seconds for a process that was asked to end
_MOMENTS = ("starting", "training", "training", "training", "saving", "evaluating")


class Kill(NamedTuple):
    """What a process was doing when it was killed, and its exit code."""

    moment: str
    code: int


def start(workdir: pathlib.Path, cache: pathlib.Path) -> subprocess.Popen:
    """Starts the run in a workdir; its output goes to `<workdir>.log`."""
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with open(workdir.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "moco_jax.main", *_RUN, f"--workdir={workdir}"],
            cwd=_REPOSITORY, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def interrupt(
    process: subprocess.Popen, workdir: pathlib.Path, by: signal.Signals, delay: float, moment: str
) -> Kill | None:
    """Sends the signal `delay` seconds after the start, of the process or of the training.

    With the moment "saving" or "evaluating" it then waits until the run does that.

    Returns:
      None if the run finished first.
    """
    saved, starts, begun = _saved(workdir), _lines(workdir / "starts.jsonl"), time.monotonic()
    while process.poll() is None:
        resumed = _lines(workdir / "starts.jsonl") > starts
        if moment != "starting" and not resumed:
            begun = time.monotonic()
        saving = any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
        # A run saves before it evaluates.
        evaluating = not saving and _saved(workdir) - saved
        due = {"saving": saving, "evaluating": evaluating}.get(moment, True)
        if due and time.monotonic() - begun > delay:
            process.send_signal(by)
            code = process.wait(_PATIENCE)
            if moment == "starting":
                moment = "training" if resumed else "before training"
            return Kill(moment, code)
        time.sleep(0.003)
    return None


def _saved(workdir: pathlib.Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()}


def _lines(path: pathlib.Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the log without the values that measure time."""
    parsed = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{key: x for key, x in line.items() if key not in _MEASURED} for line in parsed]


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns all arrays of the last checkpoint."""
    folder = epath.Path(workdir / "checkpoints" / str(_STEPS) / "state")
    handler = ocp.PyTreeCheckpointHandler()
    on_host = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder).tree
    )
    tree = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=on_host))
    flat: dict[str, np.ndarray] = {}
    pending: list[tuple[str, Any]] = [("", tree)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{name}/{key}", inner) for key, inner in value.items()]
        elif isinstance(value, (list, tuple)):
            pending += [(f"{name}/{i}", inner) for i, inner in enumerate(value)]
        elif value is not None:
            flat[name] = np.asarray(value)
    return flat


def differences(whole: pathlib.Path, killed: pathlib.Path) -> list[str]:
    """Returns what differs between two finished runs, one line each."""
    found, (want, got) = [], (lines(whole), lines(killed))
    if len(want) != len(got):
        found.append(f"{len(got)} lines of the log instead of {len(want)}")
    for number, (a, b) in enumerate(zip(want, got, strict=False), start=1):
        keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
        if keys:
            shown = ", ".join(f"{key}: {a.get(key)} and {b.get(key)}" for key in keys[:3])
            found.append(f"line {number} (step {a.get('step')}): {shown}")
    want, got = arrays(whole), arrays(killed)
    for name in sorted(want.keys() | got.keys()):
        a, b = want.get(name), got.get(name)
        if a is None or b is None or a.dtype != b.dtype or a.tobytes() != b.tobytes():
            found.append(f"the array {name} of the last checkpoint")
    return found


def killed_run(
    workdir: pathlib.Path,
    whole: pathlib.Path,
    options: argparse.Namespace,
    seconds: float,
    left: int,
) -> tuple[list[Kill], list[str]]:
    """Runs in a workdir, with at most `left` kills; returns them, and what is wrong.

    `seconds` is the time that the whole run takes.
    """
    rng, kills = random.Random(f"{options.seed}/{workdir.name}"), []
    by = signal.Signals[f"SIG{options.signal}"]
    while True:
        process = start(workdir, options.folder / "cache")
        try:
            kill = None
            if len(kills) < left:
                moment = rng.choice(_MOMENTS)
                delay = rng.uniform(0, 0.5 if moment == "starting" else 0.3) * seconds
                kill = interrupt(process, workdir, by, delay, moment)
            code = process.wait(_PATIENCE + 20 * seconds)
        except subprocess.TimeoutExpired:
            return kills, [f"{workdir.name}: no end; see {workdir.with_suffix('.log')}"]
        finally:
            process.kill()
        if kill is None:
            break
        kills.append(kill)
        steps = max(map(int, _saved(workdir)), default=0)
        print(f"{workdir.name} {kill.moment:15} exit {kill.code:4}, saved step {steps}", flush=True)
    if code:
        return kills, [f"{workdir.name}: exit {code}; see {workdir.with_suffix('.log')}"]
    wrong = [
        f"{workdir.name}: exit {kill.code} instead of {os.EX_TEMPFAIL}, {kill.moment}"
        for kill in kills
        if by == signal.SIGTERM and kill.code != os.EX_TEMPFAIL and kill.moment != "before training"
    ]
    return kills, wrong + [f"{workdir.name}: {line}" for line in differences(whole, workdir)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--folder", type=pathlib.Path, default="runs/kills", help="is emptied")
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    whole, seconds = options.folder / "whole", 0.0
    for name in ("warm_up", "whole"):  # the first run fills the compilation cache
        begun = time.monotonic()
        code = start(options.folder / name, options.folder / "cache").wait()
        seconds = time.monotonic() - begun
        if code:
            print(f"the uninterrupted run exits with {code}; see {whole.with_suffix('.log')}")
            return 1
    print(f"uninterrupted: {len(lines(whole))} lines, {seconds:.0f} s")
    wrong = [f"uninterrupted twice: {x}" for x in differences(options.folder / "warm_up", whole)]
    kills: list[Kill] = []
    runs = 0
    while len(kills) < options.kills:
        workdir = options.folder / f"run{runs}"
        runs += 1
        more, problems = killed_run(workdir, whole, options, seconds, options.kills - len(kills))
        kills += more
        wrong += problems
    moments = collections.Counter(kill.moment for kill in kills)
    codes = collections.Counter(kill.code for kill in kills)
    print(f"{len(kills)} kills in {runs} runs: {dict(moments)}; exit codes {dict(codes)}")
    print("\n".join(wrong) or "every line and every array is that of the uninterrupted run")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
