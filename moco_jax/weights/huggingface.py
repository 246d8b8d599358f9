"""The config.json of Hugging Face's ResNet."""

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
    "downsample_in_bottleneck": False,  # the stride is in the 3x3 convolution, as in torchvision
}
_DEFAULTS = _FIXED | {"model_type": None}  # the library's, for keys that the file omits


def check_config(file: pathlib.Path) -> None:
    """Raises a ValueError if the config.json is missing or describes an unsupported network."""
    try:
        content = json.loads(file.read_text())
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"Hugging Face's weights need their config.json; {file} can't be read: {error}"
        ) from error
    wrong = [
        f"{key}={given!r} (allowed: {value!r})"
        for key, value in _FIXED.items()
        if (given := content.get(key, _DEFAULTS[key])) != value
    ]
    if wrong:
        raise ValueError(f"{file} describes an unsupported network: {', '.join(wrong)}")


def problem(config: ConfigDict) -> str:
    """Returns what Hugging Face's ResNet can't express of a network, "" if it can."""
    model = config.model
    network = resnet(model.name, width=model.width)
    problems = []
    if model.stem != "imagenet":
        problems.append(f"stem {model.stem!r} (it has 7x7/2 and max-pooling only)")
    if (network.groups, network.base_width) != (1, 64):
        problems.append(f"{model.name} (it has no groups and no wider 3x3 convolutions)")
    return f"Hugging Face's ResNet can't express {' and '.join(problems)}" if problems else ""


def make_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the content of config.json for `AutoModel.from_pretrained`."""
    network = resnet(config.model.name, width=config.model.width)
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
