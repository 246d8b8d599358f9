"""Detectron2's config for a converted backbone."""

import re

from ml_collections import ConfigDict

from moco_jax.models.resnet import BasicBlock, resnet
from moco_jax.models.vit import NETWORKS

_DEPTHS = (18, 34, 50, 101, 152)


def problem(config: ConfigDict) -> str:
    """Returns what Detectron2's ResNet can't express of a network, "" if it can."""
    model = config.model
    if model.name in NETWORKS:
        return "Detectron2 has no ViT with these names"
    if _depth(config) not in _DEPTHS or model.stem != "imagenet":
        depths = ", ".join(map(str, _DEPTHS))
        return (
            f"Detectron2's ResNet can't express {model.name} with stem {model.stem!r} (it has "
            f"depths {depths} with stem 'imagenet')"
        )
    if resnet(model.name, width=model.width).block is BasicBlock and model.width != 1:
        return (
            f"Detectron2's ResNet of depth {_depth(config)} must have model.width=1, got "
            f"{model.width}"
        )
    return ""


def _depth(config: ConfigDict) -> int:
    return int(re.findall(r"\d+", config.model.name)[0])


def settings(config: ConfigDict) -> list[str]:
    """Returns the lines of Detectron2's config that differ from its defaults.

    Detectron2's default backbones are Caffe's: BGR, unscaled pixels, the stride in the first 1x1
    convolution. Our backbones are torchvision's: RGB, the stride in the 3x3 convolution. Our mean
    and std are for pixels in 0..1, so they are multiplied by 255.
    """
    network = resnet(config.model.name, width=config.model.width)
    stem = network.features // 8 // network.block.expansion
    lines = {
        "MODEL.RESNETS.DEPTH": _depth(config),
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.NUM_GROUPS": network.groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": stem * network.base_width // 64,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": stem,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": network.features // 8,
        "MODEL.PIXEL_MEAN": [round(255 * x, 3) for x in config.data.mean],
        "MODEL.PIXEL_STD": [round(255 * x, 3) for x in config.data.std],
        "INPUT.FORMAT": "RGB",
    }
    return [f"{key}: {value}" for key, value in lines.items()]
