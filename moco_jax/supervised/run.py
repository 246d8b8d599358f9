"""A supervised run, built from its config, its encoder and its data."""

import copy
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from moco_jax.data.augment.views import make_view
from moco_jax.data.loading import loader
from moco_jax.data.loading.agreement import check_same_images
from moco_jax.data.loading.order import ShuffledOrder
from moco_jax.data.sources.opening import open_named
from moco_jax.data.sources.source import Sources, one_image_a_class
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import Layout
from moco_jax.supervised import mixing, step, validation
from moco_jax.supervised.accuracy import Scores, make_scores
from moco_jax.supervised.kinds import KINDS
from moco_jax.supervised.labels import labelled
from moco_jax.supervised.start import Start
from moco_jax.training import checks, task
from moco_jax.training.batch_size import nearest_batch, power_of_two, remedy
from moco_jax.training.compilation import abstract_state, create_state, jit_step
from moco_jax.training.integrity import checkpoint_files
from moco_jax.training.optimizers import Schedule, make_optimizer, make_schedule, total_steps

_LEAST, _MOST = 8, 256  # images of a batch that fits the data: an eighth of them


@dataclasses.dataclass(frozen=True)
class SupervisedRun(task.Run):
    """The parts of a supervised run; its state is a `SupervisedState`.

    Its arrays are `images`, the arrays of the data, and `labels` i32[N].

    Attributes:
      schedule: step -> factor of the learning rates.
      scores: the `evaluated()` of a state -> Scores on the test images.
      classes: C.
      start: the encoder.
      notes: lines about the images.
    """

    schedule: Callable[[int], jax.Array]
    scores: Callable[[dict[str, Any]], Scores]
    classes: int
    start: Start
    notes: tuple[str, ...]

    @property
    def heads(self) -> list[str]:
        """The names of the heads."""
        return [f"lr={value:g}" for value in step.unscaled_rates(self.config)]


def fit_batch(config: ConfigDict, images: int, devices: int) -> ConfigDict:
    """Returns the config with the batch that fits the images, if it leaves the batch to them.

    Args:
      config: not changed.
      images: number of training images.
      devices: number of devices that split the batch.
    """
    if config.batch_size is not None or not config.fits_data:
        return config
    config = copy.deepcopy(config)
    target = max(2, min(_MOST, power_of_two(images // 8, _LEAST), images // 2))
    groups = validation.trained_groups(config) or 1
    config.batch_size, _ = nearest_batch(target, images, devices, groups=groups)
    return config


def fit_start(
    start: Start, folder: pathlib.Path, devices: int, sources: Sources | None
) -> tuple[Start, Sources | None]:
    """Returns the start with its batch, checked, and the images, opened if they are needed.

    A resumed run keeps the batch of its checkpoint.

    Raises:
      ValueError: if the batch does not fit the devices or batch norm's groups, or the images have
        no labels.
    """
    config = start.config
    if config.batch_size is not None:
        validation.check(config, devices)
        return start, sources
    kind = KINDS[config.task].name
    recipe = cluster.on_first(
        lambda: checkpoint_files.newest_recipe(folder.expanduser() / "checkpoints", kind)
    )
    if checks.is_whole(recipe.get("batch_size")):
        config = copy.deepcopy(config)
        config.batch_size, why = recipe["batch_size"], "as in the checkpoint"
    else:
        sources = open_named(config) if sources is None else sources
        images, sources = _counted(sources, config)
        config = fit_batch(config, images, devices)
        why = f"{images} labelled images: --config.batch_size=..."
    cluster.say(f"batch_size {config.batch_size}: {why}")
    validation.check(config, devices)
    return dataclasses.replace(start, config=config), sources


def _counted(sources: Sources, config: ConfigDict) -> tuple[int, Sources]:
    """Returns the number of labelled images, and the images; process 0 has selected them."""
    selected = sources

    def select() -> int:
        nonlocal selected
        train, note = labelled(sources.train, config)
        selected = dataclasses.replace(sources, train=train, selected=note)
        return len(train)

    return cluster.on_first(select), selected


def open_labelled(config: ConfigDict, sources: Sources | None) -> tuple[Sources, str]:
    """Returns labelled images for training and test, and a line about them."""
    sources = open_named(config) if sources is None else sources
    for line in sources.notes:
        cluster.say(line)
    train, note = sources.train, sources.selected
    if not note:
        train, note = labelled(train, config)
    if sources.test is None and one_image_a_class(train):
        raise ValueError(
            f"each of the {len(train)} classes of {train.name} has one image, so none can be held "
            "out for the test; are these folders classes? Set --config.data.path to a folder with "
            "one folder a class, or --config.data.test_split to a folder of labelled images"
        )
    if sources.test is None or sources.test.labels is None:
        raise ValueError(
            f"{train.name} has no labelled test images; set --config.data.test_split to a split "
            "that exists, or --config.data.held_out above 0"
        )
    return Sources(train, sources.test, sources.notes), note


def build(start: Start, layout: Layout, sources: Sources | None) -> SupervisedRun:
    """Returns the run, its data loaded, nothing compiled yet.

    Raises:
      ValueError: if the images can't be read, have no labels, or are fewer than a batch.
    """
    config = start.config
    sources, note = open_labelled(config, sources)
    assert sources.test is not None and sources.test.labels is not None
    data = loader.load(sources.train, config.data, layout)
    test = loader.load(sources.test, config.data, layout)
    check_same_images(sources.train, data, test)
    if len(data) < config.batch_size:
        groups = validation.trained_groups(config) or 1
        raise ValueError(
            f"{sources.train.name} has {len(data)} labelled images for training, fewer than "
            f"batch_size={config.batch_size}: {remedy(len(data), groups, layout.devices)}"
        )
    per_epoch = len(data) // config.batch_size
    steps = total_steps(config, per_epoch)
    classes = max(len(sources.train.class_names), int(sources.test.labels.max()) + 1)
    run_step, init, schedule = make_program(start, data, classes, per_epoch, layout)
    variables = layout.put(start.variables, layout.replicated)
    target = abstract_state(init, layout.parameters, variables)
    return SupervisedRun(
        config=config,
        layout=layout,
        order=ShuffledOrder(config.seed, len(data), config.batch_size, steps),
        data=data,
        arrays={"images": data.arrays, "labels": layout.put(data.labels, layout.replicated)},
        step=run_step,
        schedule=jax.jit(schedule),
        create=lambda: create_state(init, target, variables),
        target=target,
        contents={
            "images": task.image_content(sources.train),
            "test images": task.image_content(sources.test),
            **({"encoder": start.content} if start.content else {}),
        },
        scores=make_scores(start, test, layout),
        classes=classes,
        start=start,
        notes=(note, f"test: {len(test)} images of {sources.test.name}, {classes} classes"),
    )


def make_program(
    start: Start, data: loader.Batches, classes: int, per_epoch: int, layout: Layout
) -> tuple[Any, Callable[[Any], step.SupervisedState], Schedule]:
    """Returns the jitted step of a run, the state at step 0 as a function, and the schedule.

    The step is (state, arrays, batch, notices) -> (state, metrics), the state donated. The function
    takes the backbone's `params` and `batch_stats`.

    Args:
      start: the encoder.
      data: access to the training images.
      classes: C.
      per_epoch: steps of an epoch.
      layout: the devices.
    """
    config = start.config
    schedule, optimizer = make_updates(config, start.backbone.blocks, per_epoch)
    train_step = step.make_step(config, start, optimizer, layout)
    init = functools.partial(step.init_state, config, start, classes, optimizer)
    return _run_step(config, data, train_step, classes, layout), init, schedule


def make_updates(
    config: ConfigDict, blocks: Sequence[str], per_epoch: int
) -> tuple[Schedule, optax.GradientTransformation]:
    """Returns the schedule and the optimizer of a run.

    Args:
      config: of the linear protocol or of fine-tuning.
      blocks: names of the backbone's blocks, in order.
      per_epoch: steps of an epoch.
    """
    factors = lambda params: step.factors(config, params, blocks)  # noqa: E731
    if config.task == "linear":
        schedule = make_schedule(config, per_epoch, 1.0)
        return schedule, make_optimizer(config, schedule, factors, stacked=True)
    schedule = make_schedule(config, per_epoch, floor=config.min_lr)
    kernels = None if config.decay_all else step.decayed
    return schedule, make_optimizer(config, schedule, factors, decayed=kernels)


def _run_step(
    config: ConfigDict, data: loader.Batches, train_step: Callable, classes: int, layout: Layout
):
    prepared, dtype = config.data, jnp.dtype(config.dtype)
    view = make_view(config.view, prepared.image_size, prepared.mean, prepared.std, dtype)
    tuned = config.task == "finetune"

    def run_step(state, arrays, batch):
        images, sizes = data.images(arrays["images"], batch)
        labels = jnp.take(arrays["labels"], data.indices(batch))
        key = step.step_key(config, state.step)
        images = layout.shard(view(jax.random.fold_in(key, 0), images, sizes))
        targets = mixing.soften(labels, classes, config.label_smoothing if tuned else 0.0)
        if tuned:
            images, targets = mixing.mix(jax.random.fold_in(key, 1), images, targets, config)
            images = layout.shard(images)
        return train_step(state, images, targets)

    return jit_step(run_step, layout)
