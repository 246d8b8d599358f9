"""The pretraining task: what it runs, logs and prints."""

import dataclasses
import math
import pathlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.contrastive.masks import patches, visible
from moco_jax.contrastive.state import TrainState
from moco_jax.data.sources.source import Sources
from moco_jax.encoders.pretrained import PRETRAIN_KIND
from moco_jax.health.verdict import verdict
from moco_jax.models.encoder import described_groups, norm_groups
from moco_jax.models.pretexts import contrasts, effective, masks
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import make_layout
from moco_jax.pretraining import cpu_time, evaluation, fit, initial
from moco_jax.pretraining.reconstructions import make_reconstruction_log
from moco_jax.pretraining.run import PretrainRun, build
from moco_jax.pretraining.view_log import make_view_log
from moco_jax.training import loop
from moco_jax.training.comparison import IMAGE_PLACES, Kind
from moco_jax.training.flat_config import flatten
from moco_jax.training.optimizers import peak_lr
from moco_jax.training.outputs import ending
from moco_jax.training.outputs.metrics_log import MetricsLog
from moco_jax.training.task import Scalars, Task

_STRUCTURE = (
    *(f"model.{key}" for key in ("name", "stem", "width", "head", "hidden", "dim")),
    *(f"model.{key}" for key in ("head_layers", "predictor_layers", "predictor_last_norm")),
    *(f"model.{key}" for key in ("patch", "heads", "depth", "pool", "positions")),
    *("pretext", "contrastive_weight", "masked_weight", "decoder."),
    "queue_",
    "dictionary",
    "bank.loss",
    "key_encoder",
    "batch_size",
    "symmetric",
    "optimizer",
    "model.freeze_patch",
)
# The slots of a memory bank belong to these images.
_SLOTS = (*IMAGE_PLACES, "seed")


def checkpoint_kind(config: ConfigDict) -> Kind:
    """Returns the kind of checkpoints of a pretraining config."""
    bank = effective(config).dictionary == "memory_bank"
    return Kind(
        PRETRAIN_KIND,
        structure=_STRUCTURE + (_SLOTS if bank else ()),
        results=("knn_top1", "key_cosine/age_0", "health/rank"),
        base=config_lib.base,
        places=IMAGE_PLACES,
        fixed_images=bank,
    )


def pretrain(
    config: ConfigDict,
    folder: str | pathlib.Path,
    *,
    devices: Sequence[Any] | None = None,
    sources: Sources | None = None,
    last: bool = True,
) -> TrainState:
    """Pretrains, from the latest checkpoint in the folder if there is one; returns the state.

    Args:
      config: of the run; see `moco_jax.config.base`.
      folder: the workdir: checkpoints, metrics, the config.
      devices: `jax.Device`s; default all.
      sources: images; default those of `config.data`.
      last: whether no other run of the same command follows; then a finished run prints how to use
        its encoder.

    Raises:
      ValueError: for problems of the config, the data or the workdir; the message names each.
      OSError: for images that are absent or can't be read.
      NotFinite: when the loss or its gradient is NaN or infinite.
      Interrupted: after a first SIGINT or SIGTERM, with the state saved.
    """
    cluster.check_alike("config", str(flatten(config)))  # before any other exchange
    devices = jax.devices() if devices is None else devices
    try:
        config, start = initial.read(config, folder, len(devices))
        config, sources, chosen = fit.prepared(
            config, len(devices), sources, folder, structure=_STRUCTURE
        )
    except KeyboardInterrupt:  # while the images are listed
        raise loop.not_begun(signal.SIGINT) from None
    layout = make_layout(devices, **config.mesh)

    def make_task(log: MetricsLog) -> Task:
        run = build(config, layout, sources, [*(start.notes if start else ()), *chosen])
        task = _task(initial.begun(run, start) if start else run, log, pathlib.Path(folder))
        return task if last else dataclasses.replace(task, advice=lambda workdir: ())

    return loop.train(config, folder, checkpoint_kind(config), make_task, last=last).state


def _task(run: PretrainRun, log: MetricsLog, folder: pathlib.Path) -> Task:
    config = run.config
    chance = run.method.chance_loss
    shows = config.log_views and masks(config)
    reconstruct = make_reconstruction_log(run, log, folder) if shows else lambda state, step: None
    measures = run.monitor is not None or run.drift is not None or run.health is not None

    def evaluate(state: TrainState, step: int) -> tuple[Scalars, str]:
        reconstruct(state, step)
        return evaluation.evaluate(run, log, state, step)

    return Task(
        run=run,
        introduce=lambda state: _introduce(run, state),
        progress=lambda m: _progress(m, chance),
        extra=lambda step: (
            ({} if math.isnan(chance) else {"chance_loss": chance})
            | {
                "lr": float(run.lr(step - 1)),
                "momentum": run.method.momentum(step - 1),
            }
        ),
        evaluate=evaluate if measures or shows else None,
        every_epochs=config.knn.every_epochs,
        at_first=run.monitor is not None or run.health is not None,
        begin=run.drift.begin if run.drift else lambda since: None,
        show=make_view_log(run, log) if config.log_views else lambda batch: None,
        hint=f"A lower --config.lr (peak now {peak_lr(config):.4g}) or --config.warmup_epochs "
        "often helps.",
        reached=lambda results: evaluation.reached(results, config),
        verdict=lambda lines: evaluation.verdict_line(verdict(lines)),
        advice=lambda folder: _advice(run, folder),
    )


def _progress(metrics: Mapping[str, float], chance: float) -> str:
    """Returns the loss beside that of guessing, and how often a query finds its key."""
    line = f"loss {metrics['loss']:.3f}" + ("" if math.isnan(chance) else f" (chance {chance:.2f})")
    return line + (f"  pretext {metrics['accuracy']:.1f}%" if "accuracy" in metrics else "")


def _advice(run: PretrainRun, folder: pathlib.Path) -> Iterator[str]:
    labelled = run.data.labels is not None
    tested = run.monitor is not None or not run.config.knn.every_epochs
    yield f"the encoder is in {ending.shown(folder)}; use it from Python or with a command:"
    for line in ending.encoder_commands(run.config, folder, classes=labelled and tested):
        yield f"  {line}"


def _introduce(run: PretrainRun, state: TrainState) -> Iterator[str]:
    """Yields lines about the run."""
    config = run.config
    yield from run.notes
    groups = norm_groups(config)
    yield (
        f"{config.model.name}, {run.layout.describe(state.params)}; batch {config.batch_size}"
        f"{' in' if groups else ','} {described_groups(groups)}{_pretext(run)}"
    )
    yield (
        f"peak lr {peak_lr(config):.4g} (lr={config.lr} for {config.lr_batch} images), "
        f"{len(run.order)} steps of {run.order.steps_per_epoch} an epoch"
    )
    if run.monitor is None and config.knn.every_epochs:
        yield "no kNN monitor: no held-out labelled images"
    if not int(state.step):  # later, the progress has the time that is left
        yield from cpu_time.warn(config, len(run.order), run.layout.mesh.devices.flat[0].platform)


def _pretext(run: PretrainRun) -> str:
    config, line = run.config, ""
    if contrasts(config):
        line += f"; {run.method.dictionary.num_negatives} negatives"
    if masks(config):
        line += f"; {visible(config)} of {patches(config)} patches visible"
    return line
