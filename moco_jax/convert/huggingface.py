"""Hugging Face's ResNet: the config beside its weights, and what it can't express."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from moco_jax.models.resnet import Bottleneck, resnet

# Another value computes something else with arrays of the same names and shapes.
_FIXED = {
    "model_type": "resnet",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,  # ours and torchvision's stride is in the 3x3
}
_DEFAULTS = _FIXED | {"model_type": None}  # a config may leave out what is the library's default


def check(file: pathlib.Path) -> None:
    """Raises a ValueError if the config beside the weights is of a network that we don't have."""
    try:
        about = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Hugging Face's weights need their config beside them; {file} can't be read: {error}"
        ) from error
    given = {key: about.get(key, _DEFAULTS[key]) for key in _FIXED}
    wrong = [
        f"{key}={given[key]!r} (allowed: {value!r})"
        for key, value in _FIXED.items()
        if given[key] != value
    ]
    if wrong:
        raise ValueError(f"{file} is of a network that is not read: {', '.join(wrong)}")


def config_of(config: ConfigDict) -> dict[str, Any]:
    """Returns the content of config.json for `AutoModel.from_pretrained`.

    Raises:
      ValueError: if Hugging Face's ResNet can't be that network; says why.
    """
    model = config.model
    network = resnet(model.name, width=model.width)
    problems = []
    if model.stem != "imagenet":
        problems.append(f"stem {model.stem!r} (it has 7x7/2 and max-pooling only)")
    if (network.groups, network.base_width) != (1, 64):
        problems.append(f"{model.name} (it has no groups, and no wider 3x3 convolutions)")
    if problems:
        raise ValueError(
            f"Hugging Face's ResNet can't express {' and '.join(problems)}; allowed: --to=timm"
        )
    sizes = [network.features // 2**stage for stage in (3, 2, 1, 0)]
    return _FIXED | {
        "architectures": ["ResNetModel"],
        "num_channels": 3,
        "embedding_size": sizes[0] // network.block.expansion,
        "hidden_sizes": sizes,
        "depths": list(network.stage_sizes),
        "layer_type": "bottleneck" if network.block is Bottleneck else "basic",
        "torch_dtype": "float32",
    }
