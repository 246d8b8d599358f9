"""What a pretraining run is made of, from its config."""

import dataclasses
import math
import threading
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax import cluster, notices
from moco_jax import config as config_lib
from moco_jax.data import loader
from moco_jax.data.order import ShuffledOrder
from moco_jax.data.picture_source import Source
from moco_jax.data.sources import Sources, open_named
from moco_jax.data.views import make_view
from moco_jax.dictionaries import negatives
from moco_jax.evaluation.monitor import KnnMonitor
from moco_jax.mesh import Layout
from moco_jax.models.encoder import make_encoder
from moco_jax.optimizers import make_optimizer, make_schedule
from moco_jax.train_step import Metrics, TrainState, abstract_state, create_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is made of; nothing in it changes while it runs.

    Attributes:
      config: validated.
      layout: where arrays lie.
      order: the pictures of each step.
      data: the training pictures.
      step: jitted (state, arrays, batch, notices) -> (state, metrics).
      lr: step -> learning rate.
      create: () -> TrainState at step 0.
      target: the abstract state, for restoring.
      monitor: kNN, or None without held-out labels.
    """

    config: ConfigDict
    layout: Layout
    order: ShuffledOrder
    data: loader.DataSet
    step: Any
    lr: Callable[[int], jax.Array]
    create: Callable[[], TrainState]
    target: TrainState
    monitor: KnnMonitor | None

    @property
    def arrays(self) -> Any:
        """What every step is given of the data."""
        return self.data.arrays

    @property
    def chance(self) -> float:
        """The loss of guessing: log(negatives + 1), for each direction."""
        return math.log(negatives(self.config) + 1) * (2 if self.config.symmetric else 1)


def build(config: ConfigDict, layout: Layout, sources: Sources | None = None) -> Run:
    """Returns the run of a validated config, its data loaded, nothing compiled yet.

    Raises:
      ValueError: if the pictures can't be had, or are fewer than a batch.
    """
    sources = open_named(config) if sources is None else sources
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
    check_same_pictures(sources.train, data, monitor)
    return Run(
        config=config,
        layout=layout,
        order=ShuffledOrder(config.seed, len(data), config.batch_size, steps),
        data=data,
        step=jit_step(config, data.pictures, train_step, layout),
        lr=jax.jit(schedule),
        create=lambda: create_state(config, encoder, optimizer, layout),
        target=abstract_state(config, encoder, optimizer, layout),
        monitor=monitor,
    )


def check_same_pictures(source: Source, data: loader.DataSet, test: Any) -> None:
    """Raises a ValueError if another process has other pictures: an old copy, a part of a folder.

    They would train on as if nothing were wrong, and wait for each other in the end.
    """
    if jax.process_count() == 1:
        return
    seen = zlib.crc32("\n".join(source.names).encode())
    if source.labels is not None:
        seen = zlib.crc32(np.ascontiguousarray(source.labels).tobytes(), seen)
    kind = (type(data).__name__, len(data), seen, test is not None)
    cluster.check_alike(f"data set {source.name}", str(kind))


def jit_step(config: ConfigDict, pictures: Callable, train_step: Callable, layout: Layout):
    """Returns (state, arrays, batch, notices) -> (state, metrics), jitted, the state donated.

    `pictures` is a data set's: (arrays, batch) -> canvases and sizes.
    """
    dtype = jnp.dtype(config.dtype)
    make = [
        make_view(recipe, config.data.image_size, config.data.mean, config.data.std, dtype)
        for recipe in config.views
    ]

    def step(state, arrays, batch, notes):
        images, sizes = pictures(arrays, batch)
        # Key 0 of the root made the weights; the steps' keys come from key 1.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), state.step)
        views = tuple(
            layout.shard(view(jax.random.fold_in(key, i), images, sizes))
            for i, view in enumerate(make)
        )
        state, metrics = train_step(state, views)
        return state, metrics | layout.replicate(notices.combined(notes))

    return jax.jit(step, donate_argnums=0)


def compiled(step: Any, *arguments) -> Callable[..., tuple[TrainState, Metrics]]:
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
