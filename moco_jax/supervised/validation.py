"""Validation of a supervised task's config: all problems in one error."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from moco_jax.data.augment.recipe_checks import check_recipe
from moco_jax.models import resnet
from moco_jax.models.backbones import BACKBONES
from moco_jax.models.encoder import norm_groups
from moco_jax.supervised.config import BASES, RULES
from moco_jax.training import checks
from moco_jax.training.optimizers import peak_lr


def check(config: ConfigDict, devices: int) -> None:
    """Raises one ValueError with every problem of the config: the value and what is allowed.

    The config is made from one of `supervised.config.BASES`. Batch norm's groups are checked once
    `model` has the encoder's values.
    """
    checks.check(
        config,
        devices,
        base=BASES[config.task](),
        where=f"moco_jax.supervised.config.{config.task}()",
        rules=RULES[config.task],
        problems=_problems(config),
        grouped=trained_groups,
    )


def trained_groups(config: ConfigDict) -> int:
    """Returns the groups of batch norm; 0 if it is frozen, absent or of an unknown encoder."""
    if config.task == "linear":
        return config.bn_groups if config.feature_norm else 0
    return norm_groups(config)


def check_data(data: ConfigDict) -> None:
    """Raises one error with every problem of `data`, once the encoder's values are filled in."""
    checks.fail_on([*checks.channels(data), *checks.crop(data)])


def _problems(config: ConfigDict) -> Iterator[str]:
    yield from encoder(config)
    if config.label_fraction == 0:
        yield "label_fraction=0 leaves no labels; allowed: above 0, up to 1"
    if config.label_list and config.label_fraction != 1:
        yield (
            f"set one of label_list and label_fraction; got {config.label_list!r} and "
            f"{config.label_fraction}"
        )
    for problem in check_recipe(config.view):
        yield f"view: {problem}"
    if config.task == "linear":
        yield from _several("lr", config.lr, checks.positive, "numbers above 0")
        yield from _several("l2", config.l2, checks.not_negative, "numbers, 0 or more")
        return
    if config.fresh_norm and config.model.name in resnet.NAMES:
        yield (
            f"fresh_norm=True starts the last norm of a ViT anew, and model.name="
            f"{config.model.name!r} is a ResNet: --config.fresh_norm=False"
        )
    if all(checks.is_number(config[key]) for key in ("lr", "min_lr", "batch_size", "lr_batch")):
        if config.lr_batch > 0 and config.min_lr > peak_lr(config) > 0:
            yield (
                f"min_lr={config.min_lr} must be at most {peak_lr(config):g}, the highest rate "
                f"(lr={config.lr} times batch_size={config.batch_size} / lr_batch)"
            )


def encoder(config: ConfigDict) -> Iterator[str]:
    """Yields problems of the keys that choose the encoder."""
    if not config.pretrained and not config.from_scratch:
        yield (
            "pretrained='' names no encoder; give --config.pretrained=<workdir, checkpoint or "
            ".safetensors>, or --config.from_scratch=True with a model.name for a random one"
        )
    elif not config.pretrained and config.model.name not in BACKBONES:
        yield (
            f"model.name={config.model.name!r} is unknown, and pretrained='' names no encoder; "
            f"allowed: {', '.join(BACKBONES)}"
        )
    if not config.pretrained and config.from_scratch and not config.data.image_size:
        yield "data.image_size=0 takes the encoder's, but pretrained='' names no encoder"
    if config.baseline and config.from_scratch:
        yield "baseline=True compares with from_scratch=True, which this run already is"


def _several(key: str, values: tuple, rule: checks.Rule, allowed: str) -> Iterator[str]:
    """Yields problems of a key that has one value or several."""
    if not values or any(map(rule, values)):
        yield f"{key}={tuple(values)!r} must be one or more {allowed}"
    elif len(set(values)) < len(values):
        yield f"{key}={tuple(values)!r} has a value twice"
