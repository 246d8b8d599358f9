"""Detectron2's config for a converted backbone."""

import re

from ml_collections import ConfigDict

from moco_jax.models.resnet import BasicBlock, resnet

_DEPTHS = (18, 34, 50, 101, 152)


def settings(config: ConfigDict) -> list[str]:
    """Returns the lines of Detectron2's config that differ from its defaults.

    Detectron2's default backbones are Caffe's: BGR, unscaled pixels, the stride in the first 1x1
    convolution. Our backbones are torchvision's: RGB, the stride in the 3x3 convolution. Our mean
    and std are for pixels in 0..1, so they are multiplied by 255.

    Raises:
      ValueError: if Detectron2's ResNet can't express the network.
    """
    model = config.model
    network = resnet(model.name, width=model.width)
    depth = int(re.findall(r"\d+", model.name)[0])
    if depth not in _DEPTHS or model.stem != "imagenet":
        raise ValueError(
            f"Detectron2's ResNet can't express {model.name} with stem {model.stem!r}; allowed: "
            f"depths {', '.join(map(str, _DEPTHS))} with stem 'imagenet'"
        )
    if network.block is BasicBlock and model.width != 1:
        raise ValueError(
            f"Detectron2's ResNet of depth {depth} must have model.width=1, got {model.width}"
        )
    stem = network.features // 8 // network.block.expansion
    lines = {
        "MODEL.RESNETS.DEPTH": depth,
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
