"""Hugging Face's ResNets, ViTs and ViTMAEs: their config.json, and the arrays of attention."""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
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
_MAE = "vit_mae"  # the model_type of a masked autoencoder; the rest is that of a ViT
# The library's values of keys that a file omits.
_DEFAULTS = {
    "model_type": None,
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-12,
    "decoder_num_attention_heads": 16,
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
}

# Names of transformers 5, to those of 4, which 5 also writes.
_RENAMED = {
    r"attention\.q_proj": "attention.attention.query",
    r"attention\.k_proj": "attention.attention.key",
    r"attention\.v_proj": "attention.attention.value",
    r"attention\.o_proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
}
_BLOCKS = r"(?:encoder\.layer|decoder\.decoder_layers)"
_PARTS = ("query", "key", "value")
_FUSED = ".attention.attention.qkv."


def read_config(file: pathlib.Path, naming: str) -> dict[str, Any]:
    """Returns the content of a config.json, with the keys of `_DEFAULTS`.

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
    masked = naming in VITS and whole["model_type"] == _MAE
    allowed: dict[str, tuple[Any, ...]] = {key: (value,) for key, value in fixed.items()}
    if naming in VITS:
        allowed["model_type"] = (*allowed["model_type"], _MAE)
    wrong = [
        f"{key}={whole[key]!r} (allowed: {' or '.join(map(repr, values))})"
        for key, values in allowed.items()
        if whole[key] not in values
    ]
    if naming in VITS:
        wrong += _odd_values(whole, masked)
    if wrong:
        raise ValueError(f"{file} describes an unsupported network: {', '.join(wrong)}")
    return whole


def _odd_values(content: dict[str, Any], masked: bool) -> Iterator[str]:
    """Yields what is wrong with the numbers of a ViT's config.json."""
    for key in ("num_attention_heads", *["decoder_num_attention_heads"] * masked):
        heads: Any = content[key]
        if type(heads) is not int or heads < 1:
            yield f"{key}={heads!r} (allowed: whole numbers from 1)"
    epsilon: Any = content["layer_norm_eps"]
    if type(epsilon) not in (int, float) or not 0 <= epsilon <= 10 * EPSILON:
        yield f"layer_norm_eps={epsilon!r} (allowed: 0 to 1e-5)"
    ratio: Any = content["mask_ratio"]
    # 0 is usual in files that were saved for their features.
    if masked and (type(ratio) not in (int, float) or not 0 <= ratio < 1):
        yield f"mask_ratio={ratio!r} (allowed: 0 or more, and below 1)"
    if masked and type(content["norm_pix_loss"]) is not bool:
        yield f"norm_pix_loss={content['norm_pix_loss']!r} (allowed: true or false)"


def fused(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays of a ViT, or of a masked autoencoder's decoder, under the names of
    transformers 4, with queries, keys and values in one array `qkv`.

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
    # transformers 5 also renames this part of ViTMAE when it writes.
    name = re.sub(r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers.", name)
    for new, old in _RENAMED.items():
        name = re.sub(rf"^({_BLOCKS}\.\d+)\.{new}\.", rf"\1.{old}.", name)
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


def make_mae_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the content of config.json of a masked autoencoder."""
    content = _vit_config(config) | {"model_type": _MAE, "architectures": ["ViTMAEForPreTraining"]}
    return content | {
        "decoder_hidden_size": config.decoder.dim,
        "decoder_num_hidden_layers": config.decoder.depth,
        "decoder_num_attention_heads": config.decoder.heads,
        "decoder_intermediate_size": 4 * config.decoder.dim,
        "mask_ratio": config.mask.fraction,
        "norm_pix_loss": config.mask.normalize_pixels,
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
