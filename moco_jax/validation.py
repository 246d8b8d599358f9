"""Validation of a config: all problems in one error, before anything compiles."""

import difflib
import math
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.data import recipes
from moco_jax.dictionaries import DICTIONARIES
from moco_jax.evaluation.features import FEATURES
from moco_jax.key_encoders import KEY_ENCODERS
from moco_jax.mesh import mesh_problem
from moco_jax.models.heads import HEADS
from moco_jax.models.resnet import NAMES, STEMS
from moco_jax.optimizers import SCHEDULES, UPDATES

DTYPES = ("float32", "bfloat16")

_POSITIVE_INTEGERS = (
    "batch_size",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "model.dim",
    "queue_size",
    "bn_groups",
    "mesh.fsdp",
    "lr_batch",
    "data.image_size",
    "data.eval_resize",
    "data.canvas",
    "knn.k",
)
_POSITIVE = ("model.width", "temperature", "lr", "knn.temperature")
_NOT_NEGATIVE = (
    "seed",
    "model.hidden",
    "warmup_epochs",
    "weight_decay",
    "data.resident_megabytes",
    "data.threads",
    "knn.every_epochs",
    "knn.bank",
    "knn.queries",
)
_SHARES = ("momentum", "sgd_momentum", "data.held_out", "data.max_bad_share")
_CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": DTYPES,
    "queue_dtype": DTYPES,
    "dictionary": tuple(DICTIONARIES),
    "key_encoder": tuple(KEY_ENCODERS),
    "model.name": NAMES,
    "model.stem": STEMS,
    "model.head": tuple(HEADS),
    "lr_schedule": tuple(SCHEDULES),
    "lr_update": UPDATES,
    "knn.features": tuple(FEATURES),
}


def check(config: ConfigDict, devices: int) -> None:
    """Raises one error with every problem of the config; warns of what is allowed but unwise.

    Args:
      config: of the run.
      devices: number of devices that share the batch.

    Raises:
      ValueError: names each problem, what was got and what is allowed.
    """
    problems = list(_unknown_keys(config))
    if not problems:  # values are looked at by key, so the keys must be there
        problems = [*_values(config), *_length(config), *_views(config)]
        if _related_are_whole(config):
            problems += _relations(config, devices)
    if problems:
        raise ValueError(
            f"the config has {len(problems)} problem{'s' * (len(problems) > 1)}:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )
    if config.bn_groups == 1 and config.dictionary == "queue" and jax.process_index() == 0:
        logging.warning(
            "bn_groups=1 is synchronised batch norm over the whole batch: with a queue, the "
            "batch's statistics give the positive away, and the representation suffers (MoCo, "
            "sec. 3.3)."
        )


def _unknown_keys(config: ConfigDict) -> Iterator[str]:
    known = config_lib.flatten(config_lib.base())
    given = config_lib.flatten(config)
    for key in given.keys() - known.keys():
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        yield f"unknown key {key!r}{hint}"
    for key in known.keys() - given.keys():
        yield f"the key {key!r} is missing; start from moco_jax.config.base()"


def _values(config: ConfigDict) -> Iterator[str]:
    values = config_lib.flatten(config)
    for key in _POSITIVE_INTEGERS:
        if not _whole(values[key]):
            yield f"{key}={values[key]!r} must be a whole number, at least 1"
    for key in _POSITIVE:
        if not (_number(values[key]) and values[key] > 0):
            yield f"{key}={values[key]!r} must be above 0"
    for key in _NOT_NEGATIVE:
        if not (_number(values[key]) and values[key] >= 0):
            yield f"{key}={values[key]!r} must be 0 or more"
    for key in _SHARES:
        if not (_number(values[key]) and 0 <= values[key] <= 1):
            yield f"{key}={values[key]!r} must lie between 0 and 1"
    yield from _arrays(values)
    yield from _channels(values)
    for key, choices in _CHOICES.items():
        if values[key] not in choices:
            close = difflib.get_close_matches(str(values[key]), choices, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            yield f"{key}={values[key]!r} is unknown; {hint}known: {', '.join(choices)}"


def _arrays(values: dict[str, Any]) -> Iterator[str]:
    for key in ("data.mean", "data.std"):
        if len(values[key]) != 3 or not all(_number(v) for v in values[key]):
            yield f"{key}={values[key]!r} must be three numbers"
    if any(_number(v) and v <= 0 for v in values["data.std"]):
        yield f"data.std={values['data.std']!r} must be above 0"
    if not all(_number(drop) and 0 < drop < 1 for drop in values["lr_drops"]):
        yield f"lr_drops={values['lr_drops']!r} must be numbers between 0 and 1"


def _channels(values: dict[str, Any]) -> Iterator[str]:
    narrowest = 1 / 4 if values["model.name"] == "resnext50_32x4d" else 1 / 64
    width = values["model.width"]
    if _number(width) and 0 < width < narrowest:
        yield f"model.width={width} leaves layers without channels; at least {narrowest:.3g}"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _length(config: ConfigDict) -> Iterator[str]:
    if (config.epochs is None) == (config.steps is None):
        yield f"set one of epochs and steps; got epochs={config.epochs}, steps={config.steps}"
    for key in ("epochs", "steps"):
        if config[key] is not None and not (_number(config[key]) and config[key] > 0):
            yield f"{key}={config[key]} must be a number above 0"


def _views(config: ConfigDict) -> Iterator[str]:
    if len(config.views) != 2:
        yield f"views must be two recipes, the query's and the key's; got {len(config.views)}"
    for i, recipe in enumerate(config.views):
        for problem in recipes.check_recipe(recipe):
            yield f"views[{i}]: {problem}"


def _related_are_whole(config: ConfigDict) -> bool:
    """Returns whether the values that must fit each other are right in themselves."""
    data = config.data
    related = (config.batch_size, config.bn_groups, config.queue_size, config.mesh.fsdp)
    return all(_whole(x) for x in (*related, data.image_size, data.eval_resize))


def _whole(value: Any) -> bool:
    return _number(value) and value >= 1 and value == int(value)


def _relations(config: ConfigDict, devices: int) -> Iterator[str]:
    batch, groups, size = config.batch_size, config.bn_groups, config.queue_size
    problem = mesh_problem(config.mesh.data, config.mesh.fsdp, devices)
    if problem:
        yield problem
    if batch % devices:
        yield f"batch_size={batch} must divide by the {devices} devices; {_nearest(batch, devices)}"
    if batch % groups:
        yield f"batch_size={batch} must divide by bn_groups={groups}; {_nearest(batch, groups)}"
    elif batch // groups < 2:
        yield f"bn_groups={groups} leaves {batch // groups} image a group; batch norm needs 2"
    if groups % devices and devices % groups:
        yield (
            f"bn_groups={groups} must be a multiple or a divisor of the {devices} devices; "
            f"{_nearest(groups, devices)}"
        )
    keys = config_lib.keys_per_step(config)
    if config.dictionary == "queue" and config.key_encoder != "momentum":
        # The old keys would be another encoder's: what the momentum encoder is for.
        yield (
            f"dictionary='queue' needs key_encoder='momentum', got {config.key_encoder!r}, which "
            "goes with dictionary='in_batch'"
        )
    if config.dictionary == "queue" and size % keys:
        views_ = " (two views of each image, symmetric=True)" if config.symmetric else ""
        yield (
            f"queue_size={size} must be a multiple of the {keys} keys of a step{views_}; "
            f"{_nearest(size, keys)}"
        )
    if config.data.eval_resize < config.data.image_size:
        yield (
            f"data.eval_resize={config.data.eval_resize} must be at least "
            f"data.image_size={config.data.image_size}, which is cropped from it"
        )


def _nearest(value: int, divisor: int) -> str:
    below = value // divisor * divisor
    if not below:
        return f"the nearest that does is {divisor}"
    return f"the nearest that do are {below} and {below + divisor}"
