"""Converts the golden files' arrays from torch's names and axes to Flax's."""

import re

import numpy as np

_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_MODULES = {
    "conv1": ("backbone", "stem_conv"),
    "bn1": ("backbone", "stem_norm"),
    "": ("backbone",),
    "patch_embed": ("backbone", "patch_embed"),
    "norm": ("backbone", "norm"),
    "fc": ("head", "output"),
    "fc.0": ("head", "hidden_layer"),
    "fc.2": ("head", "output"),
}
_BLOCK_LAYERS = {
    "conv1": "Conv_0",
    "bn1": "GroupedBatchNorm_0",
    "conv2": "Conv_1",
    "bn2": "GroupedBatchNorm_1",
    "conv3": "Conv_2",
    "bn3": "GroupedBatchNorm_2",
    "downsample.0": "shortcut_conv",
    "downsample.1": "shortcut_norm",
}


_HEADS = {"projector": "head", "predictor": "predictor"}  # of MoCo v3
_KEPT = ("cls_token", "mask_token")  # parameters with the same name and axes


def to_flax(arrays: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """Returns nested (params, batch_stats), float64, from arrays under torch's names.

    Convolutions [O, I, kh, kw] become [kh, kw, I, O], linear weights [O, I] become [I, O].
    """
    params, batch_stats = {}, {}
    for name, array in arrays.items():
        module, _, kind = name.rpartition(".")
        tree = batch_stats if kind.startswith("running") else params
        for part in _path(module):
            tree = tree.setdefault(part, {})
        if kind in _KEPT:
            tree[kind] = array.astype(np.float64)
        elif array.ndim == 1:
            tree[_NORM[kind]] = array.astype(np.float64)
        else:
            axes = (2, 3, 1, 0) if array.ndim == 4 else (1, 0)
            tree["kernel"] = array.transpose(axes).astype(np.float64)
    return params, batch_stats


def _path(module: str) -> tuple[str, ...]:
    root = "decoder" if module.startswith("decoder") else "backbone"
    module = module.removeprefix(root).removeprefix(".")
    part, _, place = module.partition(".")
    if part in _HEADS:  # linear, norm and ReLU in turn: 0, 1 and 2 are the first layer's
        layer, kind = divmod(int(place), 3)
        return _HEADS[part], f"{('layer', 'norm')[kind]}{layer + 1}"
    if block := re.fullmatch(r"layer(\d)\.(\d)\.(.+)", module):
        stage, number, inner = block.groups()
        return root, f"stage{stage}_block{int(number) + 1}", _BLOCK_LAYERS[inner]
    if block := re.fullmatch(r"blocks\.(\d)\.(?:attn\.)?(.+)", module):
        number, inner = block.groups()
        return root, f"block{int(number) + 1}", inner
    if root == "decoder":
        return (root, module) if module else (root,)
    return _MODULES[module]
