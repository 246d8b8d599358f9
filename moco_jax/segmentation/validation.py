"""Validation of a segmentation config: all problems in one error."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from moco_jax.models import resnet
from moco_jax.models.backbones import BACKBONES
from moco_jax.segmentation.config import RULES, base
from moco_jax.segmentation.voc import IGNORED
from moco_jax.supervised import validation
from moco_jax.training import checks


def check(config: ConfigDict, devices: int) -> None:
    """Raises one ValueError with every problem of the config, for this number of devices."""
    checks.check(
        config,
        devices,
        base=base(),
        where="moco_jax.segmentation.config.base()",
        rules=RULES,
        problems=_problems(config),
    )


def _problems(config: ConfigDict) -> Iterator[str]:
    yield from validation.encoder(config)
    if config.model.name in BACKBONES and config.model.name not in resnet.NAMES:
        yield f"model.name={config.model.name!r} has no feature maps: segmentation needs a ResNet"
    data = config.data
    if not data.path:
        yield "data.path='' names no scenes; give --config.data.path=VOCdevkit/VOC2012"
    if checks.is_whole(config.classes) and config.classes > IGNORED:
        yield f"classes={config.classes} must be at most {IGNORED}, the label of ignored pixels"
    scale = list(data.scale)
    numbers = len(scale) == 2 and all(map(checks.is_number, scale))
    if not (numbers and 0 < scale[0] <= scale[1]):
        yield f"data.scale={scale!r} must be the lowest and the highest scale, above 0"
    # Empty values are checked after the encoder's values replace them.
    if data.mean or data.std:
        yield from checks.channels(data)
