"""What Detectron2's config must say of a converted backbone."""

import re

from ml_collections import ConfigDict

from moco_jax.models.resnet import BasicBlock, resnet

_DEPTHS = (18, 34, 50, 101, 152)


def settings(config: ConfigDict) -> list[str]:
    """Returns the lines of Detectron2's config that differ from its default.

    Its own default backbones are Caffe's: BGR, pixels not scaled, the stride in the first 1x1
    convolution. Ours are torchvision's: RGB, and mean and std of our pixels in 0..1 times 255.

    Raises:
      ValueError: if its ResNet can't be that network; says why.
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
            f"Detectron2's ResNet of depth {depth} has width 1 only, got model.width={model.width}"
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
