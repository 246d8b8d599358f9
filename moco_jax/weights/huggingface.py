"""Hugging Face's ResNetModel and ViTModel: their config.json, and the arrays of attention."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moco_jax.models.backbones import make_backbone
from moco_jax.models.resnet import Bottleneck, resnet
from moco_jax.models.vit import NETWORKS
from moco_jax.weights.names import VITS

EPSILON = 1e-6  # of our layer norms

# Another value computes something else with arrays of the same names and shapes.
_RESNET = {
    "model_type": "resnet",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,  # the stride is in the 3x3 convolution, as in torchvision
}
_VIT = {"model_type": "vit", "hidden_act": "gelu"}  # the exact GELU
# The library's values of keys that a file omits.
_DEFAULTS = {"model_type": None, "num_attention_heads": 12, "layer_norm_eps": 1e-12}

# Names of transformers 5, to those of 4, which 5 also writes.
_RENAMED = {
    r"attention\.q_proj": "attention.attention.query",
    r"attention\.k_proj": "attention.attention.key",
    r"attention\.v_proj": "attention.attention.value",
    r"attention\.o_proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
}
_PARTS = ("query", "key", "value")
_FUSED = ".attention.attention.qkv."


def read_config(file: pathlib.Path, naming: str) -> dict[str, Any]:
    """Returns the content of a config.json, with `num_attention_heads` and `layer_norm_eps`.

    Raises:
      ValueError: if it is missing or describes an unsupported network.
    """
    try:
        content = json.loads(file.read_text())
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"Hugging Face's weights need their config.json; {file} can't be read: {error}"
        ) from error
    fixed = _VIT if naming in VITS else _RESNET
    whole = fixed | _DEFAULTS | content
    wrong = [
        f"{key}={whole[key]!r} (allowed: {value!r})"
        for key, value in fixed.items()
        if whole[key] != value
    ]
    if naming in VITS:
        heads: Any = whole["num_attention_heads"]
        epsilon: Any = whole["layer_norm_eps"]
        if type(heads) is not int or heads < 1:
            wrong.append(f"num_attention_heads={heads!r} (allowed: whole numbers from 1)")
        if type(epsilon) not in (int, float) or not 0 <= epsilon <= 10 * EPSILON:
            wrong.append(f"layer_norm_eps={epsilon!r} (allowed: 0 to 1e-5)")
    if wrong:
        raise ValueError(f"{file} describes an unsupported network: {', '.join(wrong)}")
    return whole


def fused(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a ViT's arrays under the names of transformers 4, with queries, keys and values in
    one array `qkv`.

    Three arrays that can't be put together stay as they are.
    """
    old = {_old_name(name): array for name, array in arrays.items()}
    found = {}
    for name, array in old.items():
        part = next((p for p in _PARTS if f".attention.attention.{p}." in name), None)
        whole = name.replace(f".{part}.", ".qkv.")
        names = [whole.replace(".qkv.", f".{p}.") for p in _PARTS]
        three: list[Any] = [old.get(n) for n in names]
        if part is None or not _alike(three):
            found[name] = array
        elif part == _PARTS[0]:
            found[whole] = np.concatenate(three)
    return found


def _alike(arrays: list[Any]) -> bool:
    if not all(isinstance(x, np.ndarray) and x.ndim for x in arrays):
        return False
    return len({(x.shape, x.dtype) for x in arrays}) == 1


def _old_name(name: str) -> str:
    name = re.sub(r"^layers\.(?=\d+\.)", "encoder.layer.", name)
    for new, old in _RENAMED.items():
        name = re.sub(rf"^(encoder\.layer\.\d+)\.{new}\.", rf"\1.{old}.", name)
    return name


def split(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of `fused` as the library has them."""
    found = {}
    for name, array in arrays.items():
        if _FUSED not in name:
            found[name] = array
            continue
        for part, own in zip(_PARTS, np.split(array, 3), strict=True):
            found[name.replace(".qkv.", f".{part}.")] = np.ascontiguousarray(own)
    return found


def problem(config: ConfigDict) -> str:
    """Returns what Hugging Face's networks can't express of a network, "" if they can."""
    model = config.model
    problems = []
    if model.name in NETWORKS:
        if model.stem != "patch":
            problems.append(f"stem {model.stem!r} (it has a linear map of each patch only)")
        kind = "ViT"
    else:
        network, kind = resnet(model.name, width=model.width), "ResNet"
        if model.stem != "imagenet":
            problems.append(f"stem {model.stem!r} (it has 7x7/2 and max-pooling only)")
        if (network.groups, network.base_width) != (1, 64):
            problems.append(f"{model.name} (it has no groups and no wider 3x3 convolutions)")
    return f"Hugging Face's {kind} can't express {' and '.join(problems)}" if problems else ""


def make_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the content of config.json for `from_pretrained`."""
    if config.model.name in NETWORKS:
        return _vit_config(config)
    network = resnet(config.model.name, width=config.model.width)
    sizes = [network.features // 2**stage for stage in (3, 2, 1, 0)]
    return _RESNET | {
        "architectures": ["ResNetModel"],
        "num_channels": 3,
        "embedding_size": sizes[0] // network.block.expansion,
        "hidden_sizes": sizes,
        "depths": list(network.stage_sizes),
        "layer_type": "bottleneck" if network.block is Bottleneck else "basic",
        "torch_dtype": "float32",
    }


def _vit_config(config: ConfigDict) -> dict[str, Any]:
    network: Any = make_backbone(config.model)
    return _VIT | {
        "architectures": ["ViTModel"],
        "num_channels": 3,
        "image_size": config.data.image_size,
        "patch_size": network.patch,
        "hidden_size": network.dim,
        "intermediate_size": 4 * network.dim,
        "num_hidden_layers": network.depth,
        "num_attention_heads": network.heads,
        "layer_norm_eps": EPSILON,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "torch_dtype": "float32",
    }
