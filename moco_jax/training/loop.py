"""The loop that every task runs: data -> step -> log, evaluate, checkpoint."""

import collections
import contextlib
import itertools
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from moco_jax.parallel import cluster
from moco_jax.parallel.notices import Notices
from moco_jax.parallel.pipeline import IN_FLIGHT
from moco_jax.terminal import progress
from moco_jax.training import absent_images, interruption, workdir
from moco_jax.training.checkpoints import Checkpoints, StateNotFinite
from moco_jax.training.comparison import Kind
from moco_jax.training.compilation import compile_step, step_memory
from moco_jax.training.flat_config import flatten
from moco_jax.training.integrity import checkpoint_files, checksums
from moco_jax.training.interruption import Interruption
from moco_jax.training.outputs import appending, ending
from moco_jax.training.outputs.console import Console, Stopwatch, parameter_table
from moco_jax.training.outputs.metrics_log import MetricsLog
from moco_jax.training.remote import copies
from moco_jax.training.task import Finished, Scalars, Task


class Interrupted(Exception):
    """A signal stopped the run, and all its work is saved.

    Attributes:
      signal: that stopped it.
    """

    def __init__(self, message: str, by: signal.Signals):
        super().__init__(message)
        self.signal = by


class NotFinite(Exception):
    """The loss, the gradient or the state is NaN or infinite."""


def train(
    config: ConfigDict,
    path: str | pathlib.Path,
    kind: Kind,
    build: Callable[[MetricsLog], Task],
    *,
    last: bool = True,
) -> Finished:
    """Trains, from the newest whole checkpoint in the workdir if there is one.

    Args:
      config: of the run, validated.
      path: the workdir.
      kind: of its checkpoints.
      build: makes the task, given the log, which has the results of a resumed run as soon as its
        first step begins.
      last: whether no other run of the same command follows.

    Raises:
      ValueError: for problems of the data or the workdir; the message names each.
      OSError: for images that are absent or can't be read.
      NotSaved: when the last state can't be saved.
      NotFinite: when the loss, its gradient or the state is NaN or infinite.
      Interrupted: after a first SIGINT or SIGTERM, with the state saved; after one that comes too
        late to stop this run, only if another run follows.
    """
    cluster.check_alike("config", str(flatten(config)))
    # One of several processes can't leave the others in the middle of a collective: it waits for
    # the next step, whose notices inform all.
    with interruption.watch(always_waits=jax.process_count() > 1) as asked:
        try:
            finished = _in_workdir(config, path, kind, build, asked)
        except interruption.Stopped as stopped:  # there was no state yet
            raise not_begun(stopped.signal) from None
        late = 0 if last else cluster.largest(asked.by or 0)
        if late:
            raise Interrupted(
                f"stopped by {interruption.named(signal.Signals(late))} after the end of this run. "
                f"{ending.continues('continues with the next run')}",
                signal.Signals(late),
            )
        return finished


def not_begun(by: signal.Signals) -> Interrupted:
    """Returns the error for a signal before there was a state."""
    return Interrupted(
        f"stopped by {interruption.named(by)} before the first step, so nothing was saved. "
        f"{ending.continues('starts from the beginning')}",
        by,
    )


def _in_workdir(
    config: ConfigDict,
    path: str | pathlib.Path,
    kind: Kind,
    build: Callable[[MetricsLog], Task],
    asked: Interruption,
) -> Finished:
    """Opens the workdir, builds the task and runs its steps."""
    clock, reached = ending.Clock(), lambda: ""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(workdir.opened(path))
        recipe, keep = flatten(config), config.keep_checkpoints
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", keep, recipe, kind))
        try:
            checkpoints.check()
            log = MetricsLog(folder, checkpoints.latest or 0, kind.results, config)
            # A second Ctrl-C does not wait for loggers.
            stack.push(lambda kind, *_: None if kind is KeyboardInterrupt else log.close())
            clock.passed("workdir")
            task = build(log)
            clock.passed("building the run")
            run, reached = task.run, lambda: _reached(task, log)
            may_change = config.data.get("may_change", False)
            checkpoints.identify(len(run.data), run.contents, may_change=may_change)
            resumed = checkpoints.latest is not None
            with progress.phase("restoring the checkpoint" if resumed else "initialising"):
                state = checkpoints.restore(run.target) if resumed else run.create()
            first = int(state.step)
            clock.passed("restoring" if resumed else "initialising")
            cluster.on_first(lambda: workdir.record(folder, config, first))
            log.open()
            state = _loop(task, state, checkpoints, log, folder, asked, clock)
            return Finished(state, run, log.results)
        except interruption.Stopped as stopped:  # the state is the restored one, or there is none
            raise _interrupted(stopped.signal, checkpoints, reached()) from None
        except KeyboardInterrupt:
            first = cluster.is_first()
            raise KeyboardInterrupt(_stopped_at_once(checkpoints) if first else "") from None


def _stopped_at_once(checkpoints: Checkpoints) -> str:
    """Returns a line about what is saved; a save that is under way may not end."""
    saved = checkpoint_files.steps(checkpoints.folder)
    if not saved:
        return "stopped at once; nothing is saved"
    newest = ending.shown(checkpoints.path(saved[0]))
    return f"stopped at once; the newest complete checkpoint is {newest}"


def _interrupted(by: signal.Signals, checkpoints: Checkpoints, reached: str) -> Interrupted:
    """Returns the error with what is saved, the result so far and the command that continues."""
    step = checkpoints.latest
    if step is None:
        what = "before the first step was done, so nothing was saved"
        again = ending.continues("starts from the beginning")
    else:
        what = f"at step {step}; saved in {ending.shown(checkpoints.path(step))}"
        again = ending.continues("continues from there")
    stopped = f"stopped by {interruption.named(by)} {what}."
    if not cluster.is_first():
        return Interrupted(stopped, by)
    so_far = [f"so far: {reached}"] if reached else []
    return Interrupted("\n".join([stopped, *so_far, again]), by)


def _loop(
    task: Task,
    state: Any,
    checkpoints: Checkpoints,
    log: MetricsLog,
    folder: pathlib.Path,
    asked: Interruption,
    clock: ending.Clock,
) -> Any:
    """Runs the steps that are left; returns the state after the last one."""
    run = task.run
    config, total, first = run.config, len(run.order), int(state.step)
    console = Console(total, run.order.steps_per_epoch)
    _introduce(task, state, console, checkpoints)
    clock.passed("building the run")
    task.begin(checkpoints.since)
    # A run that ended between saving and evaluating catches up.
    made_up = not log.evaluated and (_due(task, first) or first == total)
    if task.at_first if first == 0 else made_up:
        _evaluate(task, state, first, console, log)
    if first >= total:
        _end(task, console, log, folder)
        return state
    notices, pending = Notices(run.layout), collections.deque()
    save = lambda: _save_done(task, state, first, pending, checkpoints)  # noqa: E731
    stopped = lambda by: _interrupted(by, checkpoints, _reached(task, log))  # noqa: E731
    reading = contextlib.closing(run.data.batches(run.order, first))
    with absent_images.saving(asked, save, stopped), reading as batches:
        train_step, batches = _compiled(task, state, batches, notices, clock)
        memory, watch = {}, Stopwatch()
        with asked.waiting(), console.counting():
            for step in range(first + 1, total + 1):
                begun = time.perf_counter()
                batch = next(batches)
                watch.waited(time.perf_counter() - begun)
                notes = notices.put(stop=asked.by or 0, bad_images=run.data.bad)
                state, metrics = train_step(state, run.arrays, batch, notes)
                pending.append((step, metrics))
                if step == first + 1:
                    memory = _first_done(train_step, metrics, console, clock, watch)
                log_now = step % config.log_every == 0 or step == total
                evaluate_now = task.evaluate is not None and (_due(task, step) or step == total)
                # Save before an evaluation too: it takes minutes, and the run may be killed.
                save_now = step % config.checkpoint_every == 0 or step == total or evaluate_now
                open_steps = 0 if log_now or save_now else IN_FLIGHT
                scalars = _settle(pending, open_steps, task, state, checkpoints)
                console.passed(step - len(pending))
                stop = int(scalars.pop("stop", 0))
                if log_now:
                    scalars |= {"epoch": step / run.order.steps_per_epoch, **task.extra(step)}
                    scalars |= watch.lap(config.batch_size) | memory
                    console.progress(step, scalars, task.progress(scalars))
                    log.write(step, scalars)
                if save_now or stop:
                    _settle(pending, 0, task, state, checkpoints)
                    _save(task, state, step, checkpoints)
                clock.stepped(begun)
                if evaluate_now and not stop:
                    stop = _evaluate_in_time(task, state, step, console, log, asked)
                    watch.restart()
                if stop:
                    checkpoints.finish(step, state)
                    raise stopped(signal.Signals(stop))
    with asked.waiting(), progress.phase("saving"):
        checkpoints.finish(total, state)
    saved = ending.shown(checkpoints.path(total))
    console.say(f"done: step {total} of {total} {clock.summary()}; saved in {saved}")
    _end(task, console, log, folder)
    return state


def _save_done(
    task: Task, state: Any, first: int, pending: collections.deque, checkpoints: Checkpoints
) -> None:
    """Saves the state if a step was done since the first."""
    if (step := int(state.step)) > first:
        _settle(pending, 0, task, state, checkpoints)
        _save(task, state, step, checkpoints)
        checkpoints.finish(step, state)


def _compiled(
    task: Task, state: Any, batches: Iterator[Any], notices: Notices, clock: ending.Clock
) -> tuple[Any, Iterator[Any]]:
    """Returns the compiled step, and all batches: the first one is needed to compile."""
    run = task.run
    clock.passed("first evaluation")
    with progress.phase("reading the first images"):
        batch = next(batches)
    if int(state.step) == 0:
        task.show(batch)
    notes = notices.put(stop=0, bad_images=run.data.bad)
    step = compile_step(run.step, state, run.arrays, batch, notes)
    clock.passed("compiling")
    return step, itertools.chain([batch], batches)


def _first_done(
    train_step: Any, metrics: Any, console: Console, clock: ending.Clock, watch: Stopwatch
) -> Scalars:
    """Prints what the way to the first step took; returns the memory that a step uses."""
    jax.block_until_ready(metrics)
    clock.passed("step")
    console.say(clock.way_to_first_step())
    with watch.paused():
        return step_memory(train_step)


def _end(task: Task, console: Console, log: MetricsLog, folder: pathlib.Path) -> None:
    """Prints what the finished run reached, and what to do with it."""
    data = task.run.data
    for line in (
        *ending.skipped(data.bad, data.skipped),
        *_reached(task, log).splitlines(),
        *task.advice(folder),
    ):
        console.say(line)


def _reached(task: Task, log: MetricsLog) -> str:
    """Returns lines about the result so far and whether the run works, "" without any."""
    return "\n".join(filter(None, (task.reached(log.results), task.verdict(log.lines))))


def _save(task: Task, state: Any, step: int, checkpoints: Checkpoints) -> None:
    """Starts saving a state; one with bad batch statistics may have a finite loss."""
    try:
        checkpoints.save(step, state)
    except StateNotFinite as error:
        raise NotFinite(
            f"step {step}: the loss is finite, but the state is not: {error}. It is not saved. "
            f"{_last_good(checkpoints)} {task.hint}"
        ) from None


def _evaluate_in_time(
    task: Task, state: Any, step: int, console: Console, log: MetricsLog, asked: Interruption
) -> int:
    """Evaluates; a signal cuts it short. Returns the signal, 0 without one."""
    try:
        with asked.at_once():
            _evaluate(task, state, step, console, log)
    except interruption.Stopped as stopped:
        return stopped.signal
    return 0


def _last_good(checkpoints: Checkpoints) -> str:
    checkpoints.wait()
    good = checkpoints.latest
    shown = ending.shown(checkpoints.path(good)) if good is not None else "none yet"
    return f"Last good checkpoint: {shown}."


def _settle(
    pending: collections.deque, keep: int, task: Task, state: Any, checkpoints: Checkpoints
) -> Scalars:
    """Waits until at most `keep` steps are pending; returns the metrics of the latest other step.

    A step's loss is checked a little later, so the devices stay busy. Only finite states are
    saved, and only finite metrics are logged.

    Raises:
      NotFinite: with the step, the metrics and arrays that are not finite, and the last good
        checkpoint.
    """
    scalars: Scalars = {}
    while len(pending) > keep:
        step, metrics = pending.popleft()
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [name for name, value in scalars.items() if not math.isfinite(value)]
        if bad:
            names = checksums.listed(checksums.summarize(state).not_finite, 5) or "nothing"
            raise NotFinite(
                f"step {step}: {', '.join(f'{n}={scalars[n]}' for n in bad)}. Not finite in the "
                f"state: {names}. {_last_good(checkpoints)} {task.hint}"
            )
    return scalars


def _due(task: Task, step: int) -> bool:
    """Returns whether a multiple of `every_epochs` lies in (step - 1, step]."""
    interval = task.every_epochs * task.run.order.steps_per_epoch
    if not interval:
        return False
    return math.floor(step / interval) > math.floor((step - 1) / interval)


def _evaluate(task: Task, state: Any, step: int, console, log) -> None:
    """Evaluates, if the task does; logs and prints the result."""
    if task.evaluate is None:
        return
    begun = time.perf_counter()
    scalars, line = task.evaluate(state, step)
    if not scalars:
        return
    log.write(step, scalars)
    line, *more = line.split("\n")
    seconds = f"took {time.perf_counter() - begun:.0f} s"
    judged = [f"  {found}"] if (found := task.verdict(log.lines)) else []
    console.say("\n".join([f"step {step}  {line}; {seconds}", *more, *judged]))


def _introduce(task: Task, state: Any, console: Console, checkpoints: Checkpoints) -> None:
    """Prints what is about to run."""
    folder, config, total = checkpoints.folder.parent, task.run.config, len(task.run.order)
    table, step = parameter_table(state.params), int(state.step)
    content = f"{table}\n".encode()
    cluster.on_first(lambda: appending.write_whole(folder / "parameters.txt", content))
    console.say(f"workdir {copies.described(folder)}")
    console.say(task.run.data.describe(config.batch_size))
    if config.steps is not None and config.epochs is not None:
        console.say(
            f"steps={config.steps} is the length of the run; epochs={config.epochs} is not used"
        )
    for line in task.introduce(state):
        console.say(line)
    if 0 < step < total:
        console.say(
            f"resumed at step {step} of {total} from {ending.shown(checkpoints.path(step))}"
        )
    elif step > total:
        console.say(f"the run is at step {step}, and the config asks for {total}: nothing is left")
    elif step == total:
        console.say(f"already at step {step} of {total}; nothing is left to do")
