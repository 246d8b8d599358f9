"""Pretraining: the run that a config describes, and what is told of it."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries import negatives
from moco_jax.contrastive.train_step import TrainState
from moco_jax.data.sources.opening import Sources
from moco_jax.parallel.mesh import Layout, make_layout
from moco_jax.pretraining import validation
from moco_jax.pretraining.run import Run, build
from moco_jax.training import checkpoints, loop
from moco_jax.training.optimizers import peak_lr
from moco_jax.training.task import Scalars, Task


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
      sources: images; default those that `config.data` names.

    Raises:
      ValueError: for problems of the config, the data or the workdir, each named.
      OSError: for images that aren't there, or may not be read.
      NotFinite: when the loss or its gradient is no longer a number.
      Interrupted: after a first SIGINT or SIGTERM, with the state saved.
    """
    devices = jax.devices() if devices is None else devices
    validation.check(config, len(devices))
    layout = make_layout(devices, **config.mesh)
    return loop.train(
        config, layout, folder, checkpoints.PRETRAIN, lambda _: _task(config, layout, sources)
    )


def _task(config: ConfigDict, layout: Layout, sources: Sources | None) -> Task:
    run = build(config, layout, sources)
    return Task(
        run=run,
        introduce=lambda state: _introduce(run, state),
        progress=lambda m: (
            f"loss {m['loss']:.3f} (chance {run.chance:.2f})  pretext {m['accuracy']:.1f}%"
        ),
        extra=lambda step: {
            "chance_loss": run.chance,
            "lr": float(run.lr(step - 1)),
            "momentum": config.momentum,
        },
        evaluate=(lambda state, step: _evaluate(run, state, step))
        if run.monitor or run.drift
        else None,
        every_epochs=config.knn.every_epochs,
        at_first=run.monitor is not None,
        hint=f"A lower --config.lr (peak now {peak_lr(config):.4g}) or --config.warmup_epochs "
        "often mends it.",
    )


def _evaluate(run: Run, state: TrainState, step: int) -> tuple[Scalars, str]:
    """Runs the monitors, kNN and the drift of keys."""
    scalars, told = {}, [f"epoch {step / run.order.steps_per_epoch:.2f}"]
    for measured, line in (_knn(run, state, step), _drift(run, state)):
        scalars |= measured
        told += [line] if line else []
    return scalars, "; ".join(told)


def _knn(run: Run, state: TrainState, step: int) -> tuple[Scalars, str]:
    """Returns kNN top-1; of the untrained network raw pixels are measured, too."""
    if run.monitor is None:
        return {}, ""
    scalars = {"knn_top1": run.monitor.top1(state.params, state.batch_stats)}
    line = f"kNN top-1 {scalars['knn_top1']:.2f}%"
    if step == 0:
        scalars["knn_top1_pixels"] = run.monitor.pixels_top1()
        line += f" (untrained network; raw pixels {scalars['knn_top1_pixels']:.2f}%)"
    return scalars, line


def _drift(run: Run, state: TrainState) -> tuple[Scalars, str]:
    """Returns the cosine of keys in the dictionary to today's, where they outlive a step."""
    cosines = run.drift.measure(state) if run.drift else {}
    if not cosines:
        return {}, ""
    told = ", ".join(f"{value:.3f} at {age}" for age, value in cosines.items())
    scalars = {f"key_cosine/age_{age}": value for age, value in cosines.items()}
    return scalars, f"keys' cosine to today's, by age in steps: {told}"


def _introduce(run: Run, state: TrainState) -> Iterator[str]:
    """Yields what is about to run."""
    config = run.config
    if run.drift:
        run.drift.begin(int(state.step))
    yield (
        f"{config.model.name}, {run.layout.describe(state.params)}; batch {config.batch_size} in "
        f"{config.bn_groups} batch-norm groups; {negatives(config)} negatives"
    )
    yield (
        f"lr {peak_lr(config):.4g} at its peak (lr={config.lr} for {config.lr_batch} images), "
        f"{len(run.order)} steps of {run.order.steps_per_epoch} an epoch"
    )
    if run.monitor is None and config.knn.every_epochs:
        yield "no kNN monitor: no held-out labelled images"
