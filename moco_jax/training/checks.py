"""The pieces of which a task's validation of its config is made."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.models.resnet import NAMES, resnet
from moco_jax.parallel.mesh import mesh_problem


@dataclasses.dataclass(frozen=True)
class Rules:
    """What single values may be, by their flattened keys.

    Attributes:
      positive_integers: 1 and up.
      positive: above 0.
      not_negative: 0 and up.
      fractions: from 0 to 1.
      choices: the names that each may have.
    """

    positive_integers: tuple[str, ...]
    positive: tuple[str, ...]
    not_negative: tuple[str, ...]
    fractions: tuple[str, ...]
    choices: Mapping[str, tuple[str, ...]]


def fail_on(problems: Iterable[str]) -> None:
    """Raises one ValueError with all the problems, if there are any."""
    problems = list(problems)
    if problems:
        raise ValueError(
            f"the config has {len(problems)} problem{'s' * (len(problems) > 1)}:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )


def unknown_keys(config: ConfigDict, base: ConfigDict, where: str) -> Iterator[str]:
    """Yields keys that the base, which is made by `where`, lacks, and those that it alone has."""
    known = config_lib.flatten(base)
    given = config_lib.flatten(config)
    for key in given.keys() - known.keys():
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        yield f"unknown key {key!r}{hint}"
    for key in known.keys() - given.keys():
        yield f"the key {key!r} is missing; start from {where}"


def values(config: ConfigDict, rules: Rules) -> Iterator[str]:
    """Yields the values that break a rule."""
    flat = config_lib.flatten(config)
    for key in rules.positive_integers:
        if not is_whole(flat[key]):
            yield f"{key}={flat[key]!r} must be a whole number, at least 1"
    for key in rules.positive:
        if not (is_number(flat[key]) and flat[key] > 0):
            yield f"{key}={flat[key]!r} must be above 0"
    for key in rules.not_negative:
        if not (is_number(flat[key]) and flat[key] >= 0):
            yield f"{key}={flat[key]!r} must be 0 or more"
    for key in rules.fractions:
        if not (is_number(flat[key]) and 0 <= flat[key] <= 1):
            yield f"{key}={flat[key]!r} must lie between 0 and 1"
    for key, choices in rules.choices.items():
        if flat[key] not in choices:
            close = difflib.get_close_matches(str(flat[key]), choices, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            yield f"{key}={flat[key]!r} is unknown; {hint}known: {', '.join(choices)}"


def channels(data: ConfigDict) -> Iterator[str]:
    """Yields a problem of the pixels' mean and std."""
    mean, std = list(data.mean), list(data.std)
    for key, value in (("data.mean", mean), ("data.std", std)):
        if len(value) != 3 or not all(is_number(v) for v in value):
            yield f"{key}={value!r} must be three numbers"
    if any(is_number(v) and v <= 0 for v in std):
        yield f"data.std={std!r} must be above 0"


def drops(config: ConfigDict) -> Iterator[str]:
    """Yields a problem of the step schedule."""
    if not all(is_number(drop) and 0 < drop < 1 for drop in config.lr_drops):
        yield f"lr_drops={list(config.lr_drops)!r} must be numbers between 0 and 1"


def width(model: ConfigDict) -> Iterator[str]:
    """Yields a problem of the network's width."""
    narrowest = 1 / min(64, resnet(model.name).base_width if model.name in NAMES else 64)
    if is_number(model.width) and 0 < model.width < narrowest:
        yield f"model.width={model.width} leaves layers without channels; at least {narrowest:.3g}"


def length(config: ConfigDict) -> Iterator[str]:
    """Yields a problem of how long the run is to be."""
    if (config.epochs is None) == (config.steps is None):
        yield f"set one of epochs and steps; got epochs={config.epochs}, steps={config.steps}"
    for key in ("epochs", "steps"):
        if config[key] is not None and not (is_number(config[key]) and config[key] > 0):
            yield f"{key}={config[key]} must be a number above 0"


def batch(config: ConfigDict, devices: int) -> Iterator[str]:
    """Yields what does not fit between the batch, its groups and the devices."""
    size, groups = config.batch_size, config.bn_groups
    problem = mesh_problem(config.mesh.data, config.mesh.fsdp, devices)
    if problem:
        yield problem
    if size % devices:
        yield f"batch_size={size} must divide by the {devices} devices; {nearest(size, devices)}"
    if size % groups:
        yield f"batch_size={size} must divide by bn_groups={groups}; {nearest(size, groups)}"
    elif size // groups < 2:
        yield f"bn_groups={groups} leaves {size // groups} image a group; batch norm needs 2"
    if groups % devices and devices % groups:
        yield (
            f"bn_groups={groups} must be a multiple or a divisor of the {devices} devices; "
            f"{nearest(groups, devices)}"
        )


def crop(data: ConfigDict) -> Iterator[str]:
    """Yields a problem of the evaluation's crop."""
    if data.eval_resize < data.image_size:
        yield (
            f"data.eval_resize={data.eval_resize} must be at least "
            f"data.image_size={data.image_size}, which is cropped from it"
        )


def nearest(value: int, divisor: int) -> str:
    """Returns which multiples of the divisor lie next to a value."""
    below = value // divisor * divisor
    if not below:
        return f"the nearest that does is {divisor}"
    return f"the nearest that do are {below} and {below + divisor}"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    return is_number(value) and value >= 1 and value == int(value)
