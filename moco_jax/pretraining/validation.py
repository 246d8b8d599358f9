"""Validation of a pretraining config: all problems in one error, before anything compiles."""

import math
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.contrastive.dictionaries.queue import keys_per_step
from moco_jax.contrastive.key_encoders import KEY_ENCODERS
from moco_jax.data.augment.recipe_checks import check_recipe
from moco_jax.models import vit
from moco_jax.models.backbones import BACKBONES, make_backbone
from moco_jax.models.encoder import norm_groups
from moco_jax.models.patches import kept
from moco_jax.models.pretexts import contrasts, effective, masks
from moco_jax.terminal import logs
from moco_jax.training import checks
from moco_jax.training.flat_config import flatten

# Old keys must come from a slowly changing encoder. Only a bank has other keys where the queries
# are the keys.
_KEY_ENCODERS_OF = {
    "queue": ("momentum",),
    "in_batch": ("momentum", "trained", "shared"),
    "memory_bank": ("none",),
}
_MASKED = ("masked", "both")
# Keys that matter only with some values of another key. `queue_size` is not among them: the
# experiments state it for all of their variants.
_NEEDS = {
    "model.head_layers": ("model.head", ("mlp_bn",)),
    "model.predictor_last_norm": ("model.predictor_layers", range(1, 100)),
    "momentum_schedule": ("key_encoder", ("momentum",)),
    "sgd_momentum": ("optimizer", ("sgd", "lars")),
    "lars_trust": ("optimizer", ("lars",)),
    **dict.fromkeys(("adam_b1", "adam_b2", "adam_eps"), ("optimizer", ("adamw",))),
    **dict.fromkeys(("contrastive_weight", "masked_weight"), ("pretext", ("both",))),
    **dict.fromkeys(("mask.fraction", "mask.block", "mask.normalize_pixels"), ("pretext", _MASKED)),
    **dict.fromkeys(("decoder.dim", "decoder.depth", "decoder.heads"), ("pretext", _MASKED)),
    **dict.fromkeys(
        ("bank.negatives", "bank.momentum", "bank.loss"), ("dictionary", ("memory_bank",))
    ),
}


def check(config: ConfigDict, devices: int, *, warns: bool = True) -> None:
    """Raises one error with every problem of the config; warns of values that are unwise.

    Args:
      config: of the run.
      devices: number of devices that split the batch.
      warns: whether to warn; False for a config that no run has.

    Raises:
      ValueError: names each problem, the value and what is allowed.
    """
    checks.check(
        config,
        devices,
        base=config_lib.base(),
        where="moco_jax.config.base()",
        rules=config_lib.RULES,
        problems=_problems(config),
        relations=lambda: _relations(effective(config), devices),
        grouped=norm_groups,
    )
    if warns:
        warn(config)


def warn(config: ConfigDict) -> None:
    """Warns on process 0 of values of a valid config that are unwise."""
    if jax.process_index() == 0:
        for warning in _warnings(config):
            logs.warning("%s", warning)


def _warnings(config: ConfigDict) -> Iterator[str]:
    if norm_groups(config) == 1 and effective(config).dictionary == "queue":
        yield (
            "bn_groups=1 is synchronised batch norm over the whole batch. With a queue, the "
            "statistics of the batch identify the positive, and the representation suffers (MoCo, "
            "sec. 3.3). The paper has 8 groups: --config.bn_groups=8, and a batch_size that is a "
            "multiple of 8."
        )
    size = config.data.image_size
    if "patch" in BACKBONES[config.model.name].keys and config.model.patch == size > 1:
        fitting = f"data.image_size={2 * size}"  # the convolutional stem has one patch size
        if config.model.stem == "patch":
            fitting = f"model.patch={' or '.join(map(str, vit.patches(size)[-4:]))}"
        yield (
            f"model.patch={size} makes each image a single patch, so attention mixes nothing; "
            f"images of several patches have --config.{fitting}"
        )
    yield from _without_effect(flatten(config))
    yield from checks.small_crop(config.data)


def _without_effect(flat: dict) -> Iterator[str]:
    """Yields a warning of each value that is not the default and that nothing reads."""
    defaults = flatten(config_lib.base())
    for key, (other, values) in _NEEDS.items():
        if flat[key] != defaults[key] and flat[other] not in values:
            yield f"{key}={flat[key]} has no effect with {other}={flat[other]}"


def _problems(config: ConfigDict) -> Iterator[str]:
    yield from checks.channels(config.data)
    if config.pretext == "masked" or config.pretext == "both" and not config.contrastive_weight:
        if not config.views:
            yield "views must have a recipe, of the images that are masked"
    elif config.key_encoder == "none" and len(config.views) != 1:
        yield f"views must be one recipe for key_encoder='none'; got {len(config.views)}"
    elif config.key_encoder != "none" and len(config.views) != 2:
        yield f"views must be two recipes, of the query and of the key; got {len(config.views)}"
    for i, recipe in enumerate(config.views):
        for problem in check_recipe(recipe, config.views[:i]):
            yield f"views[{i}]: {problem}"


def _relations(config: ConfigDict, devices: int) -> Iterator[str]:
    data, bank, decoder = config.data, config.bank, config.decoder
    sizes = (config.queue_size, config.microbatches, bank.negatives)
    sizes += (data.image_size, data.eval_resize, config.model.patch)
    sizes += (config.mask.block, decoder.dim, decoder.heads)
    if not all(checks.is_whole(x) for x in sizes):
        return
    yield from _pretext(config)
    yield from _micro_batches(config, devices)
    yield from checks.crop(data)
    if not contrasts(config):
        return
    keys = keys_per_step(config)
    if config.dictionary == "queue" and config.queue_size % keys:
        views = " (two views of each image, symmetric=True)" if config.symmetric else ""
        yield (
            f"queue_size={config.queue_size} must be a multiple of the {keys} keys of a step"
            f"{views}; {checks.nearest(config.queue_size, keys)}"
        )
    allowed = _KEY_ENCODERS_OF.get(config.dictionary, KEY_ENCODERS)
    if config.key_encoder not in allowed:
        yield (
            f"dictionary={config.dictionary!r} needs key_encoder={' or '.join(map(repr, allowed))}"
            f", got {config.key_encoder!r}"
        )
    if config.model.predictor_layers and config.key_encoder != "momentum":
        yield (
            f"model.predictor_layers={config.model.predictor_layers} needs key_encoder='momentum', "
            f"got {config.key_encoder!r}; 0 is a network without a predictor"
        )
    if config.dictionary == "memory_bank":
        if config.symmetric:
            yield "dictionary='memory_bank' has one view of each image: symmetric must be False"
        if bank.negatives % devices:
            yield (
                f"bank.negatives={bank.negatives} must be a multiple of the {devices} devices; "
                f"{checks.nearest(bank.negatives, devices)}"
            )


def _pretext(config: ConfigDict) -> Iterator[str]:
    """Yields what is wrong with the keys of the pretext."""
    if config.pretext == "both" and not (config.contrastive_weight or config.masked_weight):
        yield "contrastive_weight and masked_weight are 0; pretext='both' needs one above 0"
        return
    if not contrasts(config) and config.knn.features == "head":
        yield "a run without contrast trains no head: knn.features must be 'backbone', not 'head'"
    if not masks(config) or config.model.name not in BACKBONES:
        return
    pretext, model, mask, decoder = config.pretext, config.model, config.mask, config.decoder
    vits = [name for name, family in BACKBONES.items() if "patch" in family.keys]
    if model.name not in vits:
        yield (
            f"pretext={pretext!r} masks the patches of a ViT, and model.name={model.name!r} is "
            f"none; allowed: {', '.join(vits)}"
        )
        return
    if model.stem != "patch":
        yield f"pretext={pretext!r} needs model.stem='patch', got {model.stem!r}"
    if contrasts(config) and config.key_encoder != "momentum":
        yield f"pretext='both' needs key_encoder='momentum', got {config.key_encoder!r}"
    if decoder.dim % 4 or decoder.dim % decoder.heads:
        yield (
            f"decoder.dim={decoder.dim} must be a multiple of 4 and of "
            f"decoder.heads={decoder.heads}"
        )
    side = config.data.image_size // model.patch
    if not side or config.data.image_size % model.patch:
        return  # the network has this problem
    if side % mask.block:
        allowed = ", ".join(str(n) for n in range(1, side + 1) if side % n == 0)
        yield (
            f"mask.block={mask.block} must divide the {side} patches of a side of an image; "
            f"allowed: {allowed}"
        )
    elif checks.fraction(mask.fraction):
        return  # it is named with the other values
    elif not 0 < kept(mask.fraction, side**2, mask.block) < side**2:
        blocks = (side // mask.block) ** 2
        most = math.floor(1000 * (1 - 1 / blocks)) / 1000  # rounded up, it would mask all
        advice = (
            f"allowed: above 0, to {most}"
            if blocks > 1
            else "a smaller --config.model.patch or --config.mask.block gives more"
        )
        yield (
            f"mask.fraction={mask.fraction} must mask some of the {blocks} "
            f"{'blocks' if mask.block > 1 else 'patches'} of an image and keep others; {advice}"
        )


def _micro_batches(config: ConfigDict, devices: int) -> Iterator[str]:
    parts, groups, size = config.microbatches, config.bn_groups, config.batch_size
    if parts == 1:
        return
    if size % (parts * devices):
        yield (
            f"batch_size={size} must be a multiple of {parts * devices}, microbatches={parts} on "
            f"{devices} device{'s' * (devices > 1)}; {checks.nearest(size, parts * devices)}"
        )
    known = config.model.name in BACKBONES
    if known and make_backbone(config.model).batch_norm and groups % parts:
        allowed = " or ".join(str(n) for n in range(1, groups + 1) if groups % n == 0)
        yield (
            f"microbatches={parts} must divide bn_groups={groups}, so that each part has whole "
            f"batch-norm groups; allowed: --config.microbatches={allowed}, or another "
            f"--config.bn_groups: {checks.nearest(groups, parts)}"
        )
