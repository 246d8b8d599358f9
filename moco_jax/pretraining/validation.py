"""Validation of a config: all problems in one error, before anything compiles."""

from collections.abc import Iterator

import jax
from absl import logging
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.contrastive.dictionaries import BANK_LOSSES, DICTIONARIES
from moco_jax.contrastive.key_encoders import KEY_ENCODERS
from moco_jax.data.augment import recipes
from moco_jax.encoders.features import FEATURES
from moco_jax.models.heads import HEADS
from moco_jax.models.resnet import NAMES, STEMS
from moco_jax.training import checks
from moco_jax.training.optimizers import SCHEDULES, UPDATES

DTYPES = ("float32", "bfloat16")

_RULES = checks.Rules(
    positive_integers=(
        "batch_size",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "model.dim",
        "queue_size",
        "bank.negatives",
        "bn_groups",
        "mesh.fsdp",
        "lr_batch",
        "data.image_size",
        "data.eval_resize",
        "data.canvas",
        "knn.k",
    ),
    positive=("model.width", "temperature", "lr", "knn.temperature"),
    not_negative=(
        "seed",
        "model.hidden",
        "warmup_epochs",
        "weight_decay",
        "data.resident_megabytes",
        "data.threads",
        "knn.every_epochs",
        "knn.bank",
        "knn.queries",
    ),
    fractions=(
        "momentum",
        "bank.momentum",
        "sgd_momentum",
        "data.held_out",
        "data.max_bad_fraction",
    ),
    choices={
        "task": ("pretrain",),
        "dtype": DTYPES,
        "queue_dtype": DTYPES,
        "dictionary": tuple(DICTIONARIES),
        "key_encoder": tuple(KEY_ENCODERS),
        "bank.loss": tuple(BANK_LOSSES),
        "model.name": NAMES,
        "model.stem": STEMS,
        "model.head": tuple(HEADS),
        "lr_schedule": tuple(SCHEDULES),
        "lr_update": UPDATES,
        "knn.features": tuple(FEATURES),
    },
)
# What goes with what: old keys must be those of a slowly changing encoder, and where queries are
# the keys, only a bank has others.
_KEY_ENCODERS_OF = {
    "queue": ("momentum",),
    "in_batch": ("momentum", "trained", "shared"),
    "memory_bank": ("none",),
}


def check(config: ConfigDict, devices: int) -> None:
    """Raises one error with every problem of the config; warns of what is allowed but unwise.

    Args:
      config: of the run.
      devices: number of devices that share the batch.

    Raises:
      ValueError: names each problem, what was got and what is allowed.
    """
    base = config_lib.base()
    problems = list(checks.unknown_keys(config, base, "moco_jax.config.base()"))
    if not problems:  # values are looked at by key, so the keys must be there
        problems = [
            *checks.values(config, _RULES),
            *checks.channels(config.data),
            *checks.drops(config),
            *checks.width(config.model),
            *checks.length(config),
            *_views(config),
        ]
        if _related_are_whole(config):
            problems += _relations(config, devices)
    checks.fail_on(problems)
    if config.bn_groups == 1 and config.dictionary == "queue" and jax.process_index() == 0:
        logging.warning(
            "bn_groups=1 is synchronised batch norm over the whole batch: with a queue, the "
            "batch's statistics give the positive away, and the representation suffers (MoCo, "
            "sec. 3.3)."
        )


def _views(config: ConfigDict) -> Iterator[str]:
    if config.key_encoder == "none" and len(config.views) != 1:
        yield f"views must be one recipe, since key_encoder='none'; got {len(config.views)}"
    elif config.key_encoder != "none" and len(config.views) != 2:
        yield f"views must be two recipes, the query's and the key's; got {len(config.views)}"
    for i, recipe in enumerate(config.views):
        for problem in recipes.check_recipe(recipe):
            yield f"views[{i}]: {problem}"


def _related_are_whole(config: ConfigDict) -> bool:
    """Returns whether the values that must fit each other are right in themselves."""
    data = config.data
    related = (config.batch_size, config.bn_groups, config.queue_size, config.mesh.fsdp)
    related += (config.bank.negatives,)
    return all(checks.is_whole(x) for x in (*related, data.image_size, data.eval_resize))


def _relations(config: ConfigDict, devices: int) -> Iterator[str]:
    yield from checks.batch(config, devices)
    keys = config_lib.keys_per_step(config)
    if config.dictionary == "queue" and config.queue_size % keys:
        views_ = " (two views of each image, symmetric=True)" if config.symmetric else ""
        yield (
            f"queue_size={config.queue_size} must be a multiple of the {keys} keys of a step"
            f"{views_}; {checks.nearest(config.queue_size, keys)}"
        )
    yield from _dictionary(config, devices)
    yield from checks.crop(config.data)


def _dictionary(config: ConfigDict, devices: int) -> Iterator[str]:
    allowed = _KEY_ENCODERS_OF.get(config.dictionary, KEY_ENCODERS)
    if config.key_encoder not in allowed:
        yield (
            f"dictionary={config.dictionary!r} needs key_encoder={' or '.join(map(repr, allowed))}"
            f", got {config.key_encoder!r}"
        )
    if config.dictionary == "memory_bank":
        if config.symmetric:
            yield "dictionary='memory_bank' has one view of each image: symmetric must be False"
        if config.bank.negatives % devices:
            yield (
                f"bank.negatives={config.bank.negatives} must divide by the {devices} devices; "
                f"{checks.nearest(config.bank.negatives, devices)}"
            )
