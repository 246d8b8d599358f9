"""What a pretraining run is made of, from its config."""

import dataclasses
import threading
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.contrastive.dictionaries import chance, make_dictionary
from moco_jax.contrastive.train_step import (
    abstract_state,
    create_state,
    make_recode,
    make_train_step,
)
from moco_jax.data.augment.views import make_views
from moco_jax.data.loading import loader
from moco_jax.data.loading.order import ShuffledOrder
from moco_jax.data.sources.opening import Sources, open_named
from moco_jax.data.sources.source import Source
from moco_jax.models.encoder import make_encoder
from moco_jax.parallel import cluster, notices
from moco_jax.parallel.mesh import Layout
from moco_jax.pretraining.drift import DriftMonitor
from moco_jax.pretraining.knn_monitor import KnnMonitor
from moco_jax.training import task
from moco_jax.training.optimizers import make_optimizer, make_schedule


@dataclasses.dataclass(frozen=True)
class Run(task.Run):
    """What a pretraining run is made of; its state is a `TrainState`.

    Attributes:
      lr: step -> learning rate.
      monitor: kNN, or None without held-out labels.
      drift: of the dictionary's keys, or None where it is not asked for.
    """

    lr: Callable[[int], jax.Array]
    monitor: KnnMonitor | None
    drift: DriftMonitor | None

    @property
    def chance(self) -> float:
        """The loss of guessing, such as log(negatives + 1)."""
        return chance(self.config)


def build(config: ConfigDict, layout: Layout, sources: Sources | None = None) -> Run:
    """Returns the run of a validated config, its data loaded, nothing compiled yet.

    Raises:
      ValueError: if the images can't be had, or are fewer than a batch.
    """
    sources = open_named(config) if sources is None else sources
    data = loader.load(sources.train, config.data, layout)
    if len(data) < config.batch_size:
        raise ValueError(
            f"{sources.train.name} has {len(data)} images, fewer than batch_size="
            f"{config.batch_size}"
        )
    if config.dictionary == "memory_bank" and len(data) == config.batch_size:
        raise ValueError(
            f"dictionary='memory_bank' draws negatives from images that are not in the batch; "
            f"{sources.train.name} has {len(data)}, and so has a batch: lower batch_size"
        )
    steps_per_epoch = len(data) // config.batch_size
    steps = config_lib.total_steps(config, steps_per_epoch)
    encoder = make_encoder(config)
    schedule = make_schedule(config, steps_per_epoch)
    optimizer = make_optimizer(config, schedule)
    order = ShuffledOrder(config.seed, len(data), config.batch_size, steps)
    dictionary = make_dictionary(config, layout, images=len(data))
    train_step = make_train_step(config, encoder, optimizer, dictionary, layout)
    monitor = None
    if config.knn.every_epochs and sources.test is not None and data.labels is not None:
        test = loader.load(sources.test, config.data, layout)
        monitor = KnnMonitor(config, encoder, data, test, layout)
    drift = None
    if config.drift and config.knn.every_epochs and config.dictionary != "in_batch":
        recode = make_recode(config, encoder, layout)
        drift = DriftMonitor(config, data, order, dictionary, recode, layout)
    check_same_images(sources.train, data, monitor)
    return Run(
        config=config,
        layout=layout,
        order=order,
        data=data,
        arrays=data.arrays,
        step=jit_step(config, data, train_step, layout),
        lr=jax.jit(schedule),
        create=lambda: create_state(config, encoder, optimizer, dictionary, layout),
        target=abstract_state(config, encoder, optimizer, dictionary, layout),
        monitor=monitor,
        drift=drift,
    )


def check_same_images(source: Source, data: loader.DataSet, test: Any) -> None:
    """Raises a ValueError if another process has other images: an old copy, a part of a folder.

    They would train on as if nothing were wrong, and wait for each other in the end.
    """
    if jax.process_count() == 1:
        return
    seen = zlib.crc32("\n".join(source.names).encode())
    if source.labels is not None:
        seen = zlib.crc32(np.ascontiguousarray(source.labels).tobytes(), seen)
    kind = (type(data).__name__, len(data), seen, test is not None)
    cluster.check_alike(f"data set {source.name}", str(kind))


def jit_step(config: ConfigDict, data: loader.Batches, train_step: Callable, layout: Layout):
    """Returns (state, arrays, batch, notices) -> (state, metrics), jitted, the state donated."""
    draw = make_views(config, layout)

    def step(state, arrays, batch, notes):
        # The scopes are the names of a step's parts in profiles.
        with jax.named_scope("views"):
            views = draw(state.step, *data.images(arrays, batch))
        state, metrics = train_step(state, views, data.indices(batch))
        return state, metrics | layout.replicate(notices.combined(notes))

    return layout.jit(step, donate_argnums=0)


def step_memory(step: jax.stages.Compiled) -> dict[str, float]:
    """Returns `step_megabytes`, arguments and temporaries on a device, where the compiler tells."""
    memory = step.memory_analysis()
    if memory is None:
        return {}
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs
    return {"step_megabytes": used / 2**20}


def compiled(step: Any, *arguments) -> jax.stages.Compiled:
    """Returns the jitted step compiled for these arguments.

    In a thread of its own: compiling takes minutes for a large model, in which the main thread
    could not see a signal.
    """
    result = {}

    def work():
        try:
            result["step"] = step.lower(*arguments).compile()
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=work, daemon=True, name="compile")
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if "error" in result:
        raise result["error"]
    return result["step"]
