"""Pretraining: data -> step -> log, monitor, checkpoint."""

import collections
import contextlib
import itertools
import math
import pathlib
import signal
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax import cluster, interruption, logging, validation, workdir
from moco_jax import config as config_lib
from moco_jax.checkpoints import Checkpoints
from moco_jax.data.sources import Sources
from moco_jax.dictionaries import negatives
from moco_jax.interruption import Interruption
from moco_jax.mesh import Layout, make_layout
from moco_jax.notices import Notices
from moco_jax.optimizers import peak_lr
from moco_jax.run import Run, build, compiled, step_memory
from moco_jax.train_step import TrainState

_IN_FLIGHT = 2  # steps that run behind the one being dispatched; their losses are looked at then


class Interrupted(Exception):
    """The run was asked to stop, and all that it did is saved.

    Attributes:
      signal: by which it was asked.
    """

    def __init__(self, message: str, by: signal.Signals):
        super().__init__(message)
        self.signal = by


class NotFinite(Exception):
    """The loss or the gradient is NaN or infinite."""


def pretrain(
    config: ConfigDict,
    folder: str | pathlib.Path,
    *,
    devices: Sequence[Any] | None = None,
    sources: Sources | None = None,
) -> TrainState:
    """Pretrains, from the latest checkpoint in the folder if there is one; returns the state.

    Args:
      config: of the run; see `moco_jax.config.base`.
      folder: the workdir: checkpoints, metrics, the config.
      devices: `jax.Device`s; default all.
      sources: pictures; default those that `config.data` names.

    Raises:
      ValueError: for problems of the config, the data or the workdir, each named.
      OSError: for pictures that aren't there, or may not be read.
      NotFinite: when the loss or its gradient is no longer a number.
      Interrupted: after a first SIGINT or SIGTERM, with the state saved.
    """
    devices = jax.devices() if devices is None else devices
    validation.check(config, len(devices))
    layout = make_layout(devices, **config.mesh)
    cluster.check_alike("config", str(config_lib.flatten(config)))
    # One of several processes can't leave the others in the middle of something: it waits for the
    # next step, whose notices tell all.
    with interruption.watch(always_waits=jax.process_count() > 1) as asked:
        try:
            return _in_workdir(config, layout, folder, sources, asked)
        except interruption.Stopped as stopped:  # outside the time in which the state changes
            raise Interrupted(
                f"stopped by {stopped} before anything was to be saved. The same command starts "
                "again.",
                stopped.signal,
            ) from None


def _in_workdir(
    config: ConfigDict,
    layout: Layout,
    path: str | pathlib.Path,
    sources: Sources | None,
    asked: Interruption,
) -> TrainState:
    """Opens the workdir, builds the run, and goes through its steps."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(workdir.opened(path))
        checkpoints = stack.enter_context(
            Checkpoints(folder / "checkpoints", config.keep_checkpoints, config_lib.flatten(config))
        )
        try:
            checkpoints.check()
            run = build(config, layout, sources)
            checkpoints.note_pictures(len(run.data), exact=config.dictionary == "memory_bank")
            resumed = checkpoints.latest is not None
            state = checkpoints.restore(run.target) if resumed else run.create()
            first = int(state.step)
            cluster.on_first(lambda: workdir.record(folder, config, first))
            log = stack.enter_context(contextlib.closing(logging.MetricsLog(folder, first)))
            return _loop(run, state, checkpoints, log, folder, asked)
        except interruption.Stopped as stopped:
            checkpoints.wait()
            raise _interrupted(stopped.signal, checkpoints) from None


def _interrupted(by: signal.Signals, checkpoints: Checkpoints) -> Interrupted:
    step = checkpoints.latest
    where = (
        "before the first step was done"
        if step is None
        else f"at step {step}; saved in {checkpoints.path(step)}"
    )
    return Interrupted(f"stopped by {by.name} {where}. The same command goes on from there.", by)


def _loop(
    run: Run,
    state: TrainState,
    checkpoints: Checkpoints,
    log: logging.MetricsLog,
    folder: pathlib.Path,
    asked: Interruption,
) -> TrainState:
    """Runs the steps that are left."""
    config, total, first = run.config, len(run.order), int(state.step)
    per_epoch = run.order.steps_per_epoch
    console = logging.Console(total, per_epoch, run.chance)
    _introduce(run, state, console, folder)
    if first >= total:
        console.say(f"already at step {first}, of {total} asked for; nothing is left to do")
    if first == 0:
        _evaluate(run, state, 0, console, log, pixels=True)
    elif run.monitor and not log.evaluated and _due(first, config.knn.every_epochs, run):
        _evaluate(run, state, first, console, log)  # the run ended between saving and evaluating
    if first >= total:
        return state
    notices, pending = Notices(run.layout), collections.deque()
    with contextlib.closing(run.data.batches(run.order, first)) as batches:
        batch = next(batches)
        notes = notices.put(stop=0, bad_pictures=run.data.bad)
        train_step = compiled(run.step, state, run.data.arrays, batch, notes)
        memory = step_memory(train_step)
        batches, watch = itertools.chain([batch], batches), logging.Stopwatch()
        with asked.waiting():
            for step in range(first + 1, total + 1):
                begun = time.perf_counter()
                batch = next(batches)
                watch.waited(time.perf_counter() - begun)
                notes = notices.put(stop=asked.by or 0, bad_pictures=run.data.bad)
                state, metrics = train_step(state, run.data.arrays, batch, notes)
                pending.append((step, metrics))
                log_now = step % config.log_every == 0 or step == total
                evaluate_now = run.monitor and _due(step, config.knn.every_epochs, run)
                drift_now = run.drift and _due(step, config.drift_every_epochs, run)
                # Before an evaluation, which may take minutes, too: it may be killed meanwhile.
                save_now = step % config.checkpoint_every == 0 or step == total or evaluate_now
                open_steps = 0 if log_now or save_now else _IN_FLIGHT
                scalars = _settle(pending, open_steps, run, state, checkpoints)
                stop = int(scalars.pop("stop", 0))
                if log_now:
                    scalars |= _extra(run, step) | watch.lap(config.batch_size) | memory
                    console.progress(step, scalars)
                    log.write(step, scalars)
                if save_now or stop:
                    _settle(pending, 0, run, state, checkpoints)
                    checkpoints.save(step, state)
                if stop:
                    checkpoints.wait()
                    raise _interrupted(signal.Signals(stop), checkpoints)
                if evaluate_now or drift_now:
                    with asked.at_once():
                        if drift_now:
                            _tell_drift(run, state, step, console, log)
                        if evaluate_now:
                            _evaluate(run, state, step, console, log)
                    watch.restart()
    checkpoints.wait()
    step = int(state.step)
    console.say(f"done: step {step} in {checkpoints.path(step)}")
    return state


def _settle(
    pending: collections.deque, keep: int, run: Run, state: TrainState, checkpoints: Checkpoints
) -> dict[str, float]:
    """Returns the latest settled step's metrics, waiting until at most `keep` steps are open.

    Looking at each step's loss a little later keeps the devices busy, and still nothing that is
    not finite is ever logged as good or saved.

    Raises:
      NotFinite: with the step, what is not finite, and where the last good checkpoint lies.
    """
    scalars: dict[str, float] = {}
    while len(pending) > keep:
        step, metrics = pending.popleft()
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [name for name, value in scalars.items() if not math.isfinite(value)]
        if bad:
            good = checkpoints.latest
            where = checkpoints.path(good) if good is not None else "none was saved yet"
            raise NotFinite(
                f"step {step}: {', '.join(f'{n}={scalars[n]}' for n in bad)}. Not finite in the "
                f"state: {_not_finite(state)}. Last good checkpoint: {where}. A lower --config.lr "
                f"(peak now {peak_lr(run.config):.4g}) or --config.warmup_epochs often mends it."
            )
    return scalars


def _not_finite(state: TrainState) -> str:
    """Returns the names of the arrays with values that are not finite, the first few."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    names = [jax.tree_util.keystr(path) for path, x in flat if not bool(jnp.isfinite(x).all())]
    if not names:
        return "nothing"
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _extra(run: Run, step: int) -> dict[str, float]:
    """Returns what a log line tells besides the step's own metrics."""
    return {
        "epoch": step / run.order.steps_per_epoch,
        "chance_loss": run.chance,
        "lr": float(run.lr(step - 1)),
        "momentum": run.config.momentum,
    }


def _due(step: int, every_epochs: float, run: Run) -> bool:
    """Returns whether a multiple of so many epochs lies in (step - 1, step], or the run's end."""
    interval = every_epochs * run.order.steps_per_epoch
    reached = math.floor(step / interval) > math.floor((step - 1) / interval)
    return reached or step == len(run.order)


def _tell_drift(run: Run, state: TrainState, step: int, console, log) -> None:
    """Logs the dictionary's drift, where it outlives a step."""
    assert run.drift is not None
    cosines = run.drift.measure(state)
    if not cosines:
        return
    log.write(step, {f"key_cosine/age_{age}": value for age, value in cosines.items()})
    told = ", ".join(f"{value:.3f} ({age})" for age, value in cosines.items())
    console.say(f"step {step}  keys' cosine to today's, by age in steps: {told}")


def _evaluate(run: Run, state: TrainState, step: int, console, log, *, pixels=False) -> None:
    """Runs the kNN monitor, where there is one, and tells the result."""
    if run.monitor is None:
        return
    begun = time.perf_counter()
    scalars = {"knn_top1": run.monitor.top1(state.params, state.batch_stats)}
    note = "untrained network" if step == 0 else f"epoch {step / run.order.steps_per_epoch:.2f}"
    if pixels:
        scalars["knn_top1_pixels"] = run.monitor.pixels_top1()
        note += f"; raw pixels {scalars['knn_top1_pixels']:.2f}%"
    log.write(step, scalars)
    seconds = time.perf_counter() - begun
    console.say(f"step {step}  kNN top-1 {scalars['knn_top1']:.2f}%  ({note}; {seconds:.0f} s)")


def _introduce(run: Run, state: TrainState, console, folder: pathlib.Path) -> None:
    """Tells what is about to run."""
    config, step = run.config, int(state.step)
    table = logging.parameter_table(state.params)
    cluster.on_first(lambda: (folder / "parameters.txt").write_text(table + "\n"))
    devices, processes = list(run.layout.mesh.devices.flat), jax.process_count()
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    console.say(f"workdir {folder}")
    console.say(run.data.describe(config.batch_size))
    share = f" of {processes} processes" if processes > 1 else ""
    console.say(
        f"{config.model.name}, {parameters / 1e6:.1f} M parameters; {len(devices)} x "
        f"{devices[0].device_kind}{share}; batch {config.batch_size} in {config.bn_groups} "
        f"batch-norm groups; {negatives(config)} negatives"
    )
    console.say(
        f"lr {peak_lr(config):.4g} at its peak (lr={config.lr} for {config.lr_batch} images), "
        f"{len(run.order)} steps of {run.order.steps_per_epoch} an epoch"
    )
    if run.monitor is None and config.knn.every_epochs:
        console.say("no kNN monitor: no held-out labelled pictures")
    if step:
        console.say(f"resumed at step {step}")
