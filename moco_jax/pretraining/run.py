"""A pretraining run, built from its config and its data."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from moco_jax.contrastive.train_step import TrainStep
from moco_jax.data.augment.views import make_views
from moco_jax.data.loading import loader
from moco_jax.data.loading.agreement import check_same_images
from moco_jax.data.loading.order import ShuffledOrder
from moco_jax.data.sources.opening import open_named
from moco_jax.data.sources.source import Sources
from moco_jax.health.monitor import FEWEST, Measured, make_monitor
from moco_jax.models.pretexts import effective
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import Layout
from moco_jax.pretraining import few_images, validation
from moco_jax.pretraining.method import Method, make_method
from moco_jax.pretraining.monitors.drift import DriftMonitor
from moco_jax.pretraining.monitors.knn import KnnMonitor
from moco_jax.training import task
from moco_jax.training.compilation import jit_step
from moco_jax.training.optimizers import total_steps


@dataclasses.dataclass(frozen=True)
class PretrainRun(task.Run):
    """The parts of a pretraining run; its state is a `TrainState`.

    Attributes:
      method: encoder, key encoder, dictionary and optimizer.
      lr: step -> learning rate.
      monitor: kNN, or None without held-out labels.
      drift: of the dictionary's keys, or None if it is not measured.
      health: variables of the encoder -> measures without labels, or None if there are none.
      notes: lines about the images, and warnings.
    """

    method: Method
    lr: Callable[[int], jax.Array]
    monitor: KnnMonitor | None
    drift: DriftMonitor | None
    health: Callable[[Any], Measured | None] | None
    notes: tuple[str, ...] = ()


def build(
    config: ConfigDict,
    layout: Layout,
    sources: Sources | None = None,
    chosen: Sequence[str] = (),
) -> PretrainRun:
    """Returns the run of a validated config, its data loaded, nothing compiled yet.

    Args:
      config: of the run.
      layout: the devices.
      sources: images; default those of `config.data`.
      chosen: lines about the config, printed after those about the images.

    Raises:
      ValueError: if the images can't be read, or are fewer than a batch.
    """
    sources = open_named(config) if sources is None else sources
    for line in (*sources.notes, *chosen):
        cluster.say(line)
    data = loader.load(sources.train, config.data, layout)
    few_images.check_batch(effective(config), sources.train.name, len(data), layout.devices)
    validation.warn(config)
    method = make_method(config, layout, len(data))
    steps = total_steps(config, len(data) // config.batch_size)
    order = ShuffledOrder(config.seed, len(data), config.batch_size, steps)
    monitor = drift = health = None
    measures: list[str] = []  # lines about the images that are measured
    if config.knn.every_epochs and sources.test is not None and data.labels is not None:
        test = loader.load(sources.test, config.data, layout)
        monitor = KnnMonitor(config, method.encoder, data, test, layout)
    old_keys = method.config.dictionary != "in_batch"
    if config.drift and config.knn.every_epochs and old_keys:
        drift = DriftMonitor(method, data, order)
    measured = monitor.test if monitor else data
    if config.knn.every_epochs and min(config.health.images, len(measured)) >= FEWEST:
        what = "test" if monitor else "training"
        health = make_monitor(method.config, method.encoder, measured, layout, what)
        if not monitor or config.health.images < len(measured):
            count = min(config.health.images, len(measured))
            limit = f"health: {count} of the {len(measured)} {what} images are measured"
            measures.append(f"{limit} (health.images)")
    check_same_images(sources.train, data, monitor)
    return PretrainRun(
        config=config,
        layout=layout,
        order=order,
        data=data,
        arrays=data.arrays,
        step=make_run_step(config, data, method.train_step(), layout),
        create=method.create_state,
        target=method.abstract_state(),
        contents={"images": task.image_content(sources.train)},
        method=method,
        lr=jax.jit(method.schedule),
        monitor=monitor,
        drift=drift,
        health=health,
        notes=(
            *few_images.warnings(effective(config), len(data), layout.devices),
            *(monitor.limits() if monitor else ()),
            *measures,
        ),
    )


def make_run_step(config: ConfigDict, data: loader.Batches, train_step: TrainStep, layout: Layout):
    """Returns (state, arrays, batch, notices) -> (state, metrics), jitted, the state donated."""
    draw = make_views(config, layout)

    def step(state, arrays, batch):
        # The scopes name the parts of a step in profiles.
        with jax.named_scope("views"):
            views = draw(state.step, *data.images(arrays, batch))
        return train_step(state, views, data.indices(batch))

    return jit_step(step, layout)
