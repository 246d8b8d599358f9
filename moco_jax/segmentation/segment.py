"""Semantic segmentation by fine-tuning a dilated ResNet-FCN: what it runs, logs and prints."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.loading.loader import Batches, threads
from moco_jax.data.loading.order import ShuffledOrder
from moco_jax.data.sources.regular_file import read_file
from moco_jax.data.sources.source import Source, fingerprint
from moco_jax.models.encoder import described_groups
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import Layout, make_layout
from moco_jax.segmentation import config as segmentation_config
from moco_jax.segmentation import step, validation, views
from moco_jax.segmentation.network import make_fcn
from moco_jax.segmentation.scores import make_confusion, make_count, scores
from moco_jax.segmentation.step import SegmentationState
from moco_jax.segmentation.streamed import SceneData
from moco_jax.segmentation.voc import open_scenes
from moco_jax.supervised import results, start
from moco_jax.training import loop, task
from moco_jax.training.batch_size import remedy
from moco_jax.training.comparison import Kind
from moco_jax.training.compilation import abstract_state, create_state, jit_step
from moco_jax.training.optimizers import (
    Schedule,
    make_optimizer,
    make_schedule,
    peak_lr,
    total_steps,
)
from moco_jax.training.outputs import ending
from moco_jax.training.outputs.metrics_log import MetricsLog
from moco_jax.training.task import Content, Scalars, Task

KIND = Kind(
    "moco_jax.segment",
    # A checkpoint without fingerprints, of an earlier version, continues only from the same places.
    ("model.", "head.", "classes", "pretrained", "from_scratch", "data.path", "data.train_split"),
    results=("miou",),
    base=segmentation_config.base,
    places=("pretrained", "data.path", "data.train_split", "data.test_split"),
)


@dataclasses.dataclass(frozen=True)
class SegmentationRun(task.Run):
    """The parts of a segmentation run; its state is a `SegmentationState`, its data are scenes."""

    lr: Callable[[int], jax.Array]  # step -> learning rate
    # The `variables()` of a state -> confusion matrix of the test scenes.
    confusion: Callable[[dict[str, Any]], np.ndarray]
    test: str  # a line about the test scenes
    test_images: int


class Reached(NamedTuple):
    """The result of a run on the test scenes, percent."""

    miou: float  # after the last step
    accuracy: float  # of pixels, after the last step
    best_miou: float  # the highest of all evaluations, chosen on the test scenes themselves
    best_epoch: float  # of that evaluation


def segment(
    config: ConfigDict, folder: str | pathlib.Path, *, devices: Sequence[Any] | None = None
) -> Reached:
    """Trains segmentation on an encoder; returns the result.

    Args:
      config: of the task; see `moco_jax.segmentation.config`.
      folder: the workdir; the workdir of the baseline is `from_scratch` in it.
      devices: `jax.Device`s; default all.

    Raises:
      ValueError: for problems of the config, the encoder, the scenes or the workdir; the message
        names each.
      OSError: for files that are absent or can't be read.
      NotFinite: when the loss is NaN or infinite.
      Interrupted: after a first SIGINT or SIGTERM, with the state saved.
    """
    devices = jax.devices() if devices is None else devices
    validation.check(config, len(devices))
    layout = make_layout(devices, **config.mesh)
    return results.with_baseline(
        config,
        pathlib.Path(folder),
        lambda config, folder: _segment_one(config, folder, layout),
        lambda reached: (reached.miou, reached.best_miou),
        name="from scratch",
        metric="mIoU",
    )


def _segment_one(config: ConfigDict, folder: pathlib.Path, layout: Layout) -> Reached:
    begun = start.begin(config, _prepare)
    cluster.say("\n".join(begun.notes))
    make_task = lambda log: _task(build(begun, layout), log)  # noqa: E731
    finished = loop.train(begun.config, folder, KIND, make_task, last=not config.baseline)
    return _reached(finished.results)


def _prepare(config: ConfigDict, origin: ConfigDict) -> list[str]:
    """Fills in how pixels are normalized; returns lines to print."""
    notes = start.fill_data(config, origin, ("mean", "std"))
    data = config.data
    low, high = data.scale
    notes.append(
        f"crops of {data.image_size} pixels at scales {low:g} to {high:g}; evaluation uses whole "
        f"images at their own size; mean {tuple(data.mean)}, std {tuple(data.std)}"
    )
    return notes


def build(begun: start.Start, layout: Layout) -> SegmentationRun:
    """Returns the run, nothing compiled yet.

    Raises:
      ValueError: if the scenes can't be used, or are fewer than a batch.
      FileNotFoundError: if their files are absent.
    """
    config, splits = begun.config, (begun.config.data.train_split, begun.config.data.test_split)
    (data, content), (test, test_content) = (_open(config, split, layout) for split in splits)
    if len(data) < config.batch_size:
        raise ValueError(
            f"data.train_split={config.data.train_split!r} has {len(data)} images, fewer than "
            f"batch_size={config.batch_size}: "
            f"{remedy(len(data), config.bn_groups, layout.devices)}"
        )
    per_epoch = len(data) // config.batch_size
    run_step, init, schedule = make_program(begun, data, per_epoch, layout)
    variables = layout.put(begun.variables, layout.replicated)
    target = abstract_state(init, layout.parameters, variables)
    count = make_evaluation(begun, test, layout)
    steps = total_steps(config, per_epoch)
    return SegmentationRun(
        config=config,
        layout=layout,
        order=ShuffledOrder(config.seed, len(data), config.batch_size, steps),
        data=data,
        arrays=data.arrays,
        step=run_step,
        create=lambda: create_state(init, target, variables),
        target=target,
        contents={
            "images": content,
            "test images": test_content,
            **({"encoder": begun.content} if begun.content else {}),
        },
        lr=jax.jit(schedule),
        confusion=make_confusion(test, count, config.batch_size, config.classes),
        test=f"test: {test.describe(config.batch_size)}",
        test_images=len(test),
    )


def make_program(
    begun: start.Start, data: Batches, per_epoch: int, layout: Layout
) -> tuple[Any, Callable[[Any], SegmentationState], Schedule]:
    """Returns the jitted step of a run, the state at step 0 as a function, and the schedule.

    The step is (state, arrays, batch, notices) -> (state, metrics), the state donated. The function
    takes the backbone's `params` and `batch_stats`. `per_epoch` is the number of steps of an epoch.
    """
    config = begun.config
    schedule = make_schedule(config, per_epoch)
    optimizer, network = make_optimizer(config, schedule), make_fcn(config, begun.backbone)
    init = functools.partial(step.init_state, config, network, optimizer)
    train_step = step.make_step(network, optimizer, layout)
    return _run_step(config, data, train_step, layout), init, schedule


def make_evaluation(begun: start.Start, data: Batches, layout: Layout) -> Any:
    """Returns the jitted count of pixels by class in a batch; see `scores.make_count`."""
    config, view = begun.config, functools.partial(views.evaluation_view, begun.config)
    return make_count(data, make_fcn(config, begun.backbone), view, config.batch_size, layout)


def _open(config: ConfigDict, split: str, layout: Layout) -> tuple[SceneData, Content]:
    """Returns the scenes of a split, the same on all processes, and their identity."""
    data = config.data
    workers = threads(data)
    scenes = open_scenes(data.path, split, data.masks, config.classes, workers, data.max_megapixels)
    known = [(path.name, *size) for path, size in zip(scenes.images, scenes.sizes, strict=True)]
    cluster.check_alike(f"data set {scenes.name}", str(known))
    parts = [
        Source(scenes.name, lambda i, f=files: read_file(f[i]), [f.name for f in files], None, ())
        for files in (scenes.images, scenes.masks)
    ]
    identity = Content(f"{len(scenes)} images of {scenes.name}", "-".join(map(fingerprint, parts)))
    return SceneData(scenes, workers, layout), identity


def _run_step(config: ConfigDict, data: Batches, train_step: Callable, layout: Layout):

    def run_step(state, arrays, batch):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), state.step)
        images, sizes = data.images(arrays, batch)
        crops = views.training_view(config, key, images, batch["masks"], sizes)
        return train_step(state, *layout.shard(crops))

    return jit_step(run_step, layout)


def _task(run: SegmentationRun, log: MetricsLog) -> Task:
    return Task(
        run=run,
        introduce=lambda state: _introduce(run, state),
        progress=lambda m: f"loss {m['loss']:.3f}  train pixels {m['train_pixel_accuracy']:.1f}%",
        extra=lambda at: {"lr": float(run.lr(at - 1))},
        evaluate=lambda state, at: _evaluate(run, state, at, log),
        every_epochs=run.config.evaluate_every,
        at_first=False,
        hint=f"A lower --config.lr (now {run.config.lr}, for {run.config.lr_batch} crops) often "
        "helps.",
        reached=lambda lines: _summary(run, lines),
        advice=_advice,
    )


def _summary(run: SegmentationRun, lines: Sequence[dict[str, float]]) -> str:
    if not lines:
        return ""
    reached = _reached(lines)
    return (
        f"mIoU {reached.miou:.2f}%, pixels {reached.accuracy:.2f}% on {run.test_images} test "
        f"images; best mIoU {reached.best_miou:.2f}% (epoch {reached.best_epoch:.4g})"
    )


def _advice(folder: pathlib.Path) -> Iterator[str]:
    yield f"every evaluation is in {ending.shown(folder / 'metrics.jsonl')}"


def _introduce(run: SegmentationRun, state: SegmentationState) -> Iterator[str]:
    config = run.config
    yield run.test
    yield (
        f"dilated {config.model.name}, {run.layout.describe(state.params)}; {config.classes} "
        f"classes; batch {config.batch_size} in {described_groups(config.bn_groups)}"
    )
    yield (
        f"peak lr {peak_lr(config):.4g} (lr={config.lr} for {config.lr_batch} crops), "
        f"{len(run.order)} steps of {run.order.steps_per_epoch} an epoch"
    )


def _evaluate(
    run: SegmentationRun, state: SegmentationState, at: int, log: MetricsLog
) -> tuple[Scalars, str]:
    found = scores(run.confusion(state.variables()))
    epoch = at / run.order.steps_per_epoch
    scalars = {"miou": found.miou, "pixel_accuracy": found.accuracy, "epoch": epoch}
    scalars |= {f"iou/{c}": float(iou) for c, iou in enumerate(found.ious) if np.isfinite(iou)}
    if at == len(run.order):
        reached = _reached([*log.results, scalars])
        scalars |= {"best_miou": reached.best_miou, "best_epoch": reached.best_epoch}
    line = (
        f"mIoU {found.miou:.2f}%  pixels {found.accuracy:.2f}%  (epoch {epoch:.2f}, "
        f"{run.test_images} test images)"
    )
    return scalars, line


def _reached(lines: Sequence[dict[str, float]]) -> Reached:
    """Returns the result of a run, from the log lines of its evaluations."""
    lines = [line for line in lines if {"miou", "pixel_accuracy", "epoch"} <= line.keys()]
    if not lines:
        raise ValueError(
            "metrics.jsonl has no evaluation with miou, pixel_accuracy and epoch, which the run "
            "wrote; restore it from a copy, or give another --workdir"
        )
    last, best = lines[-1], max(lines, key=lambda line: line["miou"])
    return Reached(last["miou"], last["pixel_accuracy"], best["miou"], best["epoch"])
