"""Checks of config values, shared by the tasks: rules for single keys and for related keys."""

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from moco_jax.data.augment.view_size import eval_resize
from moco_jax.models import backbones, vit
from moco_jax.parallel.mesh import mesh_problem
from moco_jax.terminal import keys
from moco_jax.training.flat_config import flatten
from moco_jax.training.optimizers import SCHEDULES, UPDATES
from moco_jax.training.outputs.sinks import loggers

_LARGEST = 2**31 - 1  # numbers of steps and rows are int32
_LARGEST_SEED = 2**32 - 1  # JAX keeps no more bits of a seed
_LARGEST_CROP = 1.5  # eval_resize / image_size; the papers have 1.14
_MOST_LAYERS = 9  # of a head; the papers have 2 and 3
# Files of encoders may ask for any network; larger ones take hours to trace.
_MOST_BLOCKS, _WIDEST = 200, 100
_MOST_THREADS = 1024  # of a process
DTYPES = ("float32", "bfloat16")

# The value of a key -> what is wrong with it, "" if nothing.
Rule = Callable[[Any], str]


def whole(value: Any) -> str:
    return "" if is_whole(value) else f"must be a whole number from 1 to {_LARGEST}"


def positive(value: Any) -> str:
    return "" if is_number(value) and value > 0 else "must be above 0"


def not_negative(value: Any) -> str:
    return "" if is_number(value) and value >= 0 else "must be 0 or more"


def fraction(value: Any) -> str:
    return "" if is_number(value) and 0 <= value <= 1 else "must lie between 0 and 1"


def positive_fraction(value: Any) -> str:
    good = is_number(value) and 0 < value <= 1
    return "" if good else "must be above 0, and at most 1"


def below_one(value: Any) -> str:
    return "" if is_number(value) and 0 <= value < 1 else "must be 0 or more, and below 1"


def layers(value: Any) -> str:
    """The rule of a number of layers."""
    return "" if is_whole(value) and value <= _MOST_LAYERS else f"must be 1 to {_MOST_LAYERS}"


def layers_or_none(value: Any) -> str:
    return "" if value == 0 or not layers(value) else f"must be 0 to {_MOST_LAYERS}"


def seed(value: Any) -> str:
    good = value == 0 or (is_number(value) and 0 < value <= _LARGEST_SEED and value == int(value))
    return "" if good else f"must be a whole number from 0 to {_LARGEST_SEED}"


def blocks(value: Any) -> str:
    good = is_whole(value) and value <= _MOST_BLOCKS
    return "" if good else f"must be a whole number from 1 to {_MOST_BLOCKS}"


def blocks_or_default(value: Any) -> str:
    good = value == 0 or not blocks(value)
    return "" if good else f"must be a whole number from 0 to {_MOST_BLOCKS}"


def threads(value: Any) -> str:
    good = value == 0 or (is_whole(value) and value <= _MOST_THREADS)
    return "" if good else f"must be a whole number from 0 to {_MOST_THREADS}"


def width(value: Any) -> str:
    good = is_number(value) and 0 < value <= _WIDEST
    return "" if good else f"must be above 0, and at most {_WIDEST}"


def whole_or_zero(value: Any) -> str:
    good = value == 0 or is_whole(value)
    return "" if good else f"must be a whole number from 0 to {_LARGEST}"


def bit_depth(value: Any) -> str:
    return "" if is_whole(value) and 8 <= value <= 16 else "must be a whole number from 8 to 16"


def one_of(names: Iterable[str]) -> Rule:
    """Returns the rule that a value must be one of these names."""
    known = tuple(names)

    def rule(value: Any) -> str:
        if value in known:
            return ""
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"is unknown; {hint}allowed: {', '.join(known)}"

    return rule


COMMON_RULES: dict[str, Rule] = {
    "seed": seed,
    "batch_size": whole,
    "bn_groups": whole,
    "dtype": one_of(DTYPES),
    "log_every": whole,
    "checkpoint_every": whole,
    "keep_checkpoints": whole,
    "mesh.fsdp": whole,
    "model.stem": one_of(backbones.STEMS),
    "model.width": width,
    "model.patch": whole,
    "model.heads": whole_or_zero,
    "model.depth": blocks_or_default,
    "model.pool": one_of(vit.POOLS),
    "lr_batch": whole,
    "lr_schedule": one_of(SCHEDULES),
    "lr_update": one_of(UPDATES),
    "warmup_epochs": not_negative,
    "sgd_momentum": fraction,
    "weight_decay": not_negative,
    "data.threads": threads,
    **loggers.RULES,
}


def check(
    config: ConfigDict,
    devices: int,
    *,
    base: ConfigDict,
    where: str,
    rules: Mapping[str, Rule],
    problems: Iterable[str],
    relations: Callable[[], Iterable[str]] = tuple,
    grouped: Callable[[ConfigDict], Any] = lambda config: True,
) -> None:
    """Raises one error with every problem of a config.

    Args:
      config: of a task.
      devices: number of devices that split the batch.
      base: the config that has every key of the task.
      where: the function that returns the base, for messages.
      rules: what each key may be.
      problems: the task's own problems; looked at once all keys are there.
      relations: returns problems of keys that must fit each other; called once the batch, its
        groups and the mesh are whole numbers.
      grouped: whether batch norm takes its statistics from the batch, so that `bn_groups` matters;
        called once the keys of `model` obey their rules.

    Raises:
      ValueError: names each problem, the value and what is allowed.
    """
    found = list(_unknown_keys(config, base, where))
    if not found:
        found = [
            *_values(config, rules),
            *_drops(config),
            *_backbone(config, rules),
            *_length(config),
            *problems,
        ]
        if all(is_whole(x) for x in (config.batch_size, config.bn_groups, config.mesh.fsdp)):
            found += [
                *_batch(config, devices, _obeys(config, rules, "model.") and grouped(config)),
                *relations(),
            ]
    fail_on(found)


def fail_on(problems: Iterable[str]) -> None:
    """Raises one ValueError with all the problems, if there are any."""
    problems = list(problems)
    if problems:
        raise ValueError(
            f"the config has {len(problems)} problem{'s' * (len(problems) > 1)}:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )


def _unknown_keys(config: ConfigDict, base: ConfigDict, where: str) -> Iterator[str]:
    """Yields keys that only the config or only the base has."""
    known, given = flatten(base), flatten(config)
    for key in given.keys() - known.keys():
        close = keys.nearest(key, known)
        yield f"unknown key {key!r}" + (f"; did you mean {close}?" if close else "")
    for key in known.keys() - given.keys():
        yield f"the key {key!r} is missing; start from {where}"


def _values(config: ConfigDict, rules: Mapping[str, Rule]) -> Iterator[str]:
    """Yields the values that break their rule."""
    flat = flatten(config)
    for key, rule in rules.items():
        problem = rule(flat[key])
        if problem:
            # A user, password or token in a URL is not printed.
            shown = re.sub(r"://[^/].*@", "://***@", repr(flat[key]))
            yield f"{key}={shown} {problem}"


def _drops(config: ConfigDict) -> Iterator[str]:
    if not all(is_number(drop) and 0 < drop < 1 for drop in config.lr_drops):
        yield f"lr_drops={list(config.lr_drops)!r} must be numbers between 0 and 1"


def _backbone(config: ConfigDict, rules: Mapping[str, Rule]) -> Iterator[str]:
    """Yields problems of a backbone whose keys obey their rules."""
    size = config.data.image_size
    if _obeys(config, rules, "model."):
        yield from backbones.problems(config.model, size if is_whole(size) else 0)


def _obeys(config: ConfigDict, rules: Mapping[str, Rule], prefix: str) -> bool:
    """Returns whether the values of the keys with a prefix obey their rules."""
    flat = flatten(config)
    return not any(rule(flat[key]) for key, rule in rules.items() if key.startswith(prefix))


def _length(config: ConfigDict) -> Iterator[str]:
    if config.epochs is None and config.steps is None:
        yield "set one of epochs and steps; got epochs=None, steps=None"
    for key in ("epochs", "steps"):
        if config[key] is not None and positive(config[key]):
            yield f"{key}={config[key]} must be a number above 0"


def _batch(config: ConfigDict, devices: int, grouped: Any) -> Iterator[str]:
    """Yields problems of the batch, its batch-norm groups (if it has any) and the devices."""
    size, groups = config.batch_size, config.bn_groups
    problem = mesh_problem(config.mesh.data, config.mesh.fsdp, devices)
    if problem:
        yield problem
    if size % devices:
        allowed = nearest(size, devices)
        yield f"batch_size={size} must be a multiple of the {devices} devices; {allowed}"
    if not grouped:
        return
    if size % groups:
        yield f"batch_size={size} must be a multiple of bn_groups={groups}; {nearest(size, groups)}"
    elif size // groups < 2:
        yield f"bn_groups={groups} leaves 1 image per group; batch norm needs at least 2"
    if groups % devices and devices % groups:
        yield (
            f"bn_groups={groups} must be a multiple or a divisor of the {devices} devices; "
            f"{nearest(groups, devices)}"
        )


def channels(data: ConfigDict) -> Iterator[str]:
    """Yields problems of the mean and std of pixels."""
    mean, std = list(data.mean), list(data.std)
    for key, value in (("data.mean", mean), ("data.std", std)):
        if len(value) != 3 or not all(is_number(v) for v in value):
            yield f"{key}={value!r} must be three numbers"
    if any(is_number(v) and v <= 0 for v in std):
        yield f"data.std={std!r} must be above 0"


def crop(data: ConfigDict) -> Iterator[str]:
    """Yields problems of the evaluation crop."""
    if data.eval_resize < data.image_size:
        yield (
            f"data.eval_resize={data.eval_resize} must be at least "
            f"data.image_size={data.image_size}, which is cropped from it"
        )


def small_crop(data: ConfigDict) -> Iterator[str]:
    """Yields a warning if evaluation uses a small central part of each image."""
    size, whole = data.image_size, data.eval_resize
    if whole > _LARGEST_CROP * size:
        yield (
            f"data.eval_resize={whole} is large for data.image_size={size}: evaluation uses the "
            f"central {size} of {whole} pixels, {size**2 / whole**2:.0%} of a square image. Set "
            f"--config.data.eval_resize={eval_resize(size)}."
        )


def nearest(value: int, divisor: int) -> str:
    """Returns a phrase with the multiples of the divisor next to a value."""
    below = value // divisor * divisor
    if not below:
        return f"the nearest multiple is {divisor}"
    return f"the nearest multiples are {below} and {below + divisor}"


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite float or an integer that fits into one."""
    return isinstance(value, (int, float)) and -sys.float_info.max <= value <= sys.float_info.max


def is_whole(value: Any) -> bool:
    return is_number(value) and 1 <= value <= _LARGEST and value == int(value)
