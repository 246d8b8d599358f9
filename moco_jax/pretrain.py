"""Pretraining: data -> step -> log, monitor, checkpoint."""

import collections
import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax import interruption, logging, validation, workdir
from moco_jax.checkpoints import Checkpoints
from moco_jax.data import loader
from moco_jax.data.order import ShuffledOrder
from moco_jax.data.sources import Sources, open_sources
from moco_jax.data.views import make_view
from moco_jax.evaluation.monitor import KnnMonitor
from moco_jax.mesh import Layout, make_layout
from moco_jax.models.encoder import make_encoder
from moco_jax.optimizers import make_optimizer, make_schedule, peak_lr
from moco_jax.train_step import Metrics, TrainState, abstract_state, create_state, make_train_step

_IN_FLIGHT = 2  # steps that run behind the one being dispatched; their losses are looked at then


class Interrupted(Exception):
    """The run was asked to stop, and has saved its state.

    Attributes:
      signal: by which it was asked.
    """

    def __init__(self, message: str, signal):
        super().__init__(message)
        self.signal = signal


class NotFinite(Exception):
    """The loss or the gradient is NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is made of; nothing in it changes while it runs.

    Attributes:
      config: validated.
      order: the pictures of each step.
      data: the training pictures.
      step: compiled (state, arrays, batch) -> (state, metrics).
      lr: step -> learning rate.
      create: () -> TrainState at step 0.
      target: the abstract state, for restoring.
      monitor: kNN, or None without held-out labels.
    """

    config: ConfigDict
    order: ShuffledOrder
    data: loader.DataSet
    step: Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]
    lr: Callable[[int], jax.Array]
    create: Callable[[], TrainState]
    target: TrainState
    monitor: KnnMonitor | None

    @property
    def chance(self) -> float:
        """The loss of guessing: log(K + 1), for each direction."""
        return math.log(self.config.queue_size + 1) * (2 if self.config.symmetric else 1)


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
    layout = make_layout(devices)
    validation.check(config, layout.devices)
    folder, lock = workdir.open_workdir(folder)
    with lock:
        checkpoints = Checkpoints(
            folder / "checkpoints", config.keep_checkpoints, config_lib.flatten(config)
        )
        try:
            checkpoints.check()
            run = build(config, layout, sources)
            checkpoints.note_pictures(len(run.data))
            resumed = checkpoints.latest is not None
            state = checkpoints.restore(run.target) if resumed else run.create()
            first = int(state.step)
            workdir.record(folder, config, first)
            with contextlib.closing(logging.MetricsLog(folder, first)) as log:
                return _loop(run, state, checkpoints, log, folder)
        finally:
            checkpoints.close()


def build(config: ConfigDict, layout: Layout, sources: Sources | None = None) -> Run:
    """Returns the run of a validated config, its data loaded, nothing compiled yet.

    Raises:
      ValueError: if the pictures can't be had, or are fewer than a batch.
    """
    if sources is None:
        sources = open_sources(
            source=config.data.source,
            path=config.data.path,
            held_out=config.data.held_out,
            seed=config.seed,
            train_split=config.data.train_split,
            test_split=config.data.test_split,
        )
    data = loader.load(sources.train, config.data, layout)
    if len(data) < config.batch_size:
        raise ValueError(
            f"{sources.train.name} has {len(data)} pictures, fewer than batch_size="
            f"{config.batch_size}"
        )
    steps_per_epoch = len(data) // config.batch_size
    steps = config_lib.total_steps(config, steps_per_epoch)
    encoder = make_encoder(config)
    schedule = make_schedule(config, steps_per_epoch)
    optimizer = make_optimizer(config, schedule)
    train_step = make_train_step(config, encoder, optimizer, layout)
    monitor = None
    if config.knn.every_epochs and sources.test is not None and data.labels is not None:
        test = loader.load(sources.test, config.data, layout)
        monitor = KnnMonitor(config, encoder, data, test, layout)
    return Run(
        config=config,
        order=ShuffledOrder(config.seed, len(data), config.batch_size, steps),
        data=data,
        step=compile_step(config, data, train_step, layout),
        lr=jax.jit(schedule),
        create=lambda: create_state(config, encoder, optimizer, layout),
        target=abstract_state(config, encoder, optimizer, layout),
        monitor=monitor,
    )


def compile_step(config: ConfigDict, data: loader.DataSet, train_step: Callable, layout: Layout):
    """Returns (state, arrays, batch) -> (state, metrics), jitted, the state donated."""
    dtype = jnp.dtype(config.dtype)
    make = [
        make_view(recipe, config.data.image_size, config.data.mean, config.data.std, dtype)
        for recipe in config.views
    ]

    def step(state, arrays, batch):
        images, sizes = data.pictures(arrays, batch)
        # Key 0 of the root made the weights; the steps' keys come from key 1.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), state.step)
        views = tuple(
            layout.shard(view(jax.random.fold_in(key, i), images, sizes))
            for i, view in enumerate(make)
        )
        return train_step(state, views)

    return jax.jit(step, donate_argnums=0)


def _loop(
    run: Run,
    state: TrainState,
    checkpoints: Checkpoints,
    log: logging.MetricsLog,
    folder: pathlib.Path,
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
    elif run.monitor and not log.evaluated and (_due(first, config, per_epoch) or first == total):
        _evaluate(run, state, first, console, log)  # the run ended between saving and evaluating
    watch, pending = logging.Stopwatch(), collections.deque()
    batches = contextlib.closing(run.data.batches(run.order, first))
    with batches as batches, interruption.watch() as asked:
        for step in range(first + 1, total + 1):
            begun = time.perf_counter()
            batch = next(batches)
            watch.waited(time.perf_counter() - begun)
            state, metrics = run.step(state, run.data.arrays, batch)
            pending.append((step, metrics))
            stop = asked.by  # looked at once: the signal may come at any moment
            log_now = step % config.log_every == 0 or step == total
            evaluate_now = run.monitor and (_due(step, config, per_epoch) or step == total)
            # Before an evaluation, which may take minutes, too: it may be killed meanwhile.
            save_now = step % config.checkpoint_every == 0 or step == total or stop or evaluate_now
            keep = 0 if log_now or save_now or evaluate_now else _IN_FLIGHT
            scalars = _settle(pending, keep, run, state, checkpoints)
            if log_now:
                scalars |= _extra(run, step) | watch.lap(config.batch_size)
                console.progress(step, scalars)
                log.write(step, scalars)
            if save_now:
                checkpoints.save(step, state)
            if stop:
                checkpoints.wait()
                raise Interrupted(
                    f"stopped by {stop.name} at step {step}; saved in "
                    f"{checkpoints.path(step)}. The same command goes on from there.",
                    stop,
                )
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
        "bad_pictures": float(run.data.bad),
    }


def _due(step: int, config: ConfigDict, per_epoch: int) -> bool:
    """Returns whether a multiple of `knn.every_epochs` lies in (step - 1, step]."""
    interval = config.knn.every_epochs * per_epoch
    return math.floor(step / interval) > math.floor((step - 1) / interval)


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
    (folder / "parameters.txt").write_text(logging.parameter_table(state.params) + "\n")
    devices = list(state.step.sharding.device_set)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    console.say(f"workdir {folder}")
    console.say(run.data.describe(config.batch_size))
    console.say(
        f"{config.model.name}, {parameters / 1e6:.1f} M parameters; {len(devices)} x "
        f"{devices[0].device_kind}; batch {config.batch_size} in {config.bn_groups} "
        f"batch-norm groups; {config.queue_size} keys"
    )
    console.say(
        f"lr {peak_lr(config):.4g} at its peak (lr={config.lr} for {config.lr_batch} images), "
        f"{len(run.order)} steps of {run.order.steps_per_epoch} an epoch"
    )
    if run.monitor is None and config.knn.every_epochs:
        console.say("no kNN monitor: no held-out labelled pictures")
    if step:
        console.say(f"resumed at step {step}")
