"""Validation of a supervised task's config: all problems in one error."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from moco_jax.data.augment import recipes
from moco_jax.models.resnet import NAMES, STEMS
from moco_jax.pretraining.validation import DTYPES
from moco_jax.supervised import config as bases
from moco_jax.training import checks
from moco_jax.training.optimizers import SCHEDULES, UPDATES

BASES = {"linear": bases.linear, "finetune": bases.finetune}

_POSITIVE_INTEGERS = (
    "batch_size",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "bn_groups",
    "mesh.fsdp",
    "lr_batch",
    "data.canvas",
)
_NOT_NEGATIVE = (
    "seed",
    "evaluate_every",
    "warmup_epochs",
    "weight_decay",
    "data.image_size",
    "data.eval_resize",
    "data.resident_megabytes",
    "data.threads",
)
_FRACTIONS = ("sgd_momentum", "data.held_out", "data.max_bad_fraction", "label_fraction")
_CHOICES = {
    "dtype": DTYPES,
    "model.stem": STEMS,
    "lr_schedule": tuple(SCHEDULES),
    "lr_update": UPDATES,
}
_RULES = {
    "linear": checks.Rules(
        positive_integers=(*_POSITIVE_INTEGERS, "iterations"),
        positive=("model.width", "tolerance"),
        not_negative=_NOT_NEGATIVE,
        fractions=_FRACTIONS,
        choices=_CHOICES,
    ),
    "finetune": checks.Rules(
        positive_integers=_POSITIVE_INTEGERS,
        positive=("model.width", "lr"),
        not_negative=(*_NOT_NEGATIVE, "mixup", "cutmix", "head_lr"),
        fractions=(*_FRACTIONS, "ema", "label_smoothing"),
        choices=_CHOICES,
    ),
}


def check(config: ConfigDict, devices: int) -> None:
    """Raises one error with every problem of the config.

    Args:
      config: of the task, made from one of `BASES`.
      devices: number of devices that share the batch.

    Raises:
      ValueError: names each problem, what was got and what is allowed.
    """
    base = BASES[config.task]
    where = f"moco_jax.supervised.config.{config.task}()"
    problems = list(checks.unknown_keys(config, base(), where))
    if not problems:
        problems = [
            *checks.values(config, _RULES[config.task]),
            *checks.drops(config),
            *checks.length(config),
            *encoder(config),
            *_labels(config),
            *(f"view: {problem}" for problem in recipes.check_recipe(config.view)),
        ]
        if config.task == "linear":
            problems += [*_several("lr", config.lr, above=0), *_several("l2", config.l2)]
        # The groups matter where batch norm is trained only.
        related = (config.batch_size, config.bn_groups, config.mesh.fsdp)
        if all(checks.is_whole(x) for x in related):
            problems += checks.batch(config, devices)
    checks.fail_on(problems)


def check_data(data: ConfigDict) -> None:
    """Raises one error with every problem of how images are prepared, once that is known."""
    checks.fail_on([*checks.channels(data), *checks.crop(data)])


def encoder(config: ConfigDict) -> Iterator[str]:
    """Yields what is wrong with the encoder that is named, or is not."""
    if not config.pretrained and not config.from_scratch:
        yield (
            "pretrained='' names no encoder; give --config.pretrained=<workdir, checkpoint or "
            ".safetensors>, or --config.from_scratch=True with a model.name for a random one"
        )
    elif not config.pretrained and config.model.name not in NAMES:
        yield (
            f"model.name={config.model.name!r} is unknown, and pretrained='' tells no other; "
            f"known: {', '.join(NAMES)}"
        )
    if not config.pretrained and config.from_scratch and not config.data.image_size:
        yield "data.image_size=0 takes the encoder's, but pretrained='' names none"
    if config.baseline and config.from_scratch:
        yield "baseline=True compares with from_scratch=True, which this run already is"
    yield from checks.width(config.model)


def _labels(config: ConfigDict) -> Iterator[str]:
    if config.label_fraction == 0:
        yield "label_fraction=0 leaves no labels; allowed: above 0, up to 1"
    if config.label_list and config.label_fraction != 1:
        yield f"set one of label_list and label_fraction; got {config.label_list!r} and " + (
            f"{config.label_fraction}"
        )


def _several(key: str, values: tuple[float, ...], above: float | None = None) -> Iterator[str]:
    """Yields a problem of a key that has one value or several."""
    allowed = "numbers above 0" if above is not None else "numbers, 0 or more"
    good = [checks.is_number(v) and (v > 0 or (v == 0 and above is None)) for v in values]
    if not good or not all(good):
        yield f"{key}={tuple(values)!r} must be one or more {allowed}"
    elif len(set(values)) < len(values):
        yield f"{key}={tuple(values)!r} holds a value twice"
