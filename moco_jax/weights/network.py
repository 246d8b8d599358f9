"""Recognises a ResNet and the references' heads from the shapes of their arrays."""

import copy
import itertools
from typing import Any

import jax
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.data.augment.view_size import eval_resize
from moco_jax.models.backbones import make_backbone
from moco_jax.models.resnet import NAMES, BasicBlock, Bottleneck, ResNet, resnet
from moco_jax.models.vit import NETWORKS
from moco_jax.training.flat_config import flatten
from moco_jax.weights.names import BATCH_NORM_MLP, Naming, head_module
from moco_jax.weights.variables import Arrays, listed

_NETWORK = ("name", "stem", "width", "patch", "heads", "depth", "positions")  # of a backbone
_STEMS = {7: "imagenet", 3: "small"}  # by the kernel size of the first convolution


def backbone(arrays: Arrays, naming: Naming, source: str) -> dict[str, Any]:
    """Returns `name`, `stem` and `width` for `config.model`.

    Raises:
      ValueError: if `moco_jax.models.resnet` has no such network.
    """

    def shape(*module: str) -> tuple[int, ...]:
        array = arrays.get(f"{naming.name(('backbone', *module))}.weight")
        return () if array is None else tuple(array.shape)

    stem = shape("stem_conv")
    first = {f"Conv_{i}": shape("stage1_block1", f"Conv_{i}") for i in (0, 1, 2)}
    stages = tuple(
        next(n for n in itertools.count() if not shape(f"stage{stage}_block{n + 1}", "Conv_0"))
        for stage in range(1, 5)
    )
    if len(stem) != 4 or not all(stages):
        needed = ("stem_conv",), *((f"stage{n}_block1", "Conv_0") for n in range(1, 5))
        lacks = [naming.name(("backbone", *module)) for module in needed if not shape(*module)]
        raise ValueError(
            f"{source} is not a ResNet of four stages ({naming.title}): it lacks "
            f"{listed(f'{name}.weight' for name in lacks) or 'a stem of four axes'}"
        )
    if stem[1] != 3 or stem[2:] not in ((7, 7), (3, 3)):
        raise ValueError(
            f"{source}: the first convolution is {stem[2]}x{stem[3]} on {stem[1]} channels; "
            "allowed: 7x7 or 3x3 on 3 channels"
        )
    middle, last = first["Conv_1"], first["Conv_2"]
    odd = [
        naming.name(("backbone", "stage1_block1", layer))
        for layer, size in first.items()
        if (layer != "Conv_2" or size) and (len(size) != 4 or not all(size))
    ]
    if odd:
        raise ValueError(
            f"{source}: {listed(f'{name}.weight' for name in odd)} must have four axes, none empty"
        )
    block, filters = (Bottleneck, last[0] // 4) if last else (BasicBlock, middle[0])
    if not filters or middle[0] < middle[1]:
        raise ValueError(f"{source}: its first block is no ResNet's: {middle}, {last}")
    groups = middle[0] // middle[1]
    base_width = middle[0] * 64 // (groups * filters)
    found = ResNet(stages, block, groups=groups, base_width=base_width)
    name = next((name for name in NAMES if resnet(name) == found), None)
    if name is None:
        raise ValueError(
            f"{source} is an unsupported ResNet: {block.__name__}s {stages}, {groups} groups "
            f"of {base_width} channels; allowed: {', '.join(NAMES)}"
        )
    return {"name": name, "stem": _STEMS[stem[2]], "width": filters / 64}


def head(arrays: Arrays) -> dict[str, Any]:
    """Returns `head`, `hidden` and `dim` of MoCo v1's or v2's head; {} without a head."""
    layers = ("mlp", "output"), ("mlp", "hidden_layer"), ("linear", "output")
    output, hidden, linear = (arrays.get(f"{head_module(*layer)}.weight") for layer in layers)
    if output is not None and hidden is not None:
        size = 0 if hidden.shape[0] == hidden.shape[1] else hidden.shape[0]
        return {"head": "mlp", "hidden": size, "dim": output.shape[0]}
    if linear is not None:
        return {"head": "linear", "dim": linear.shape[0]}
    return {}


def batch_norm_head(arrays: Arrays, naming: Naming, source: str) -> dict[str, Any]:
    """Returns the values of `config.model` of MoCo v3's head and predictor; {} without a head.

    Args:
      arrays: of an encoder with its head, and of `predictor.` if it has one.
      naming: of the backbone.
      source: where they come from, for messages.

    Raises:
      ValueError: if the hidden layers of head and predictor differ.
    """
    sizes = _linear_layers(arrays, naming.classifier)
    if not sizes:
        return {}
    ahead = _linear_layers(arrays, "predictor")
    hidden = {size for layers in (sizes, ahead) for size, _ in layers[:-1]}
    if len(hidden) != 1:
        raise ValueError(
            f"{source}: the hidden layers of head and predictor must have one length, got "
            f"{sorted(hidden) or 'no hidden layer'}"
        )
    size, features = hidden.pop(), sizes[0][1]
    model = {"head": BATCH_NORM_MLP, "head_layers": len(sizes), "dim": sizes[-1][0]}
    model |= {"hidden": 0 if size == features else size, "predictor_layers": len(ahead)}
    if ahead:
        norm = head_module(BATCH_NORM_MLP, f"norm{len(ahead)}", "predictor")
        model["predictor_last_norm"] = f"{norm}.running_mean" in arrays
    return model


def _linear_layers(arrays: Arrays, module: str) -> list[tuple[int, int]]:
    """Returns (outputs, inputs) of the linear layers of v3's head or predictor."""
    sizes, n = [], 1
    while (name := f"{head_module(BATCH_NORM_MLP, f'layer{n}', module)}.weight") in arrays:
        if len(arrays[name].shape) != 2:
            break
        sizes.append(tuple(arrays[name].shape))
        n += 1
    return sizes


def config_of(
    name: str,
    model: dict[str, Any],
    given: ConfigDict | None,
    image_size: int = 0,
    others: dict[str, Any] | None = None,
) -> ConfigDict:
    """Returns the config of an encoder that another project trained.

    Args:
      name: of the experiment, used if `given` is None.
      model: the recognised values of `config.model`.
      given: the experiment's config, which also defines how images are prepared; None prepares
        them as for ImageNet.
      image_size: pixels; 0 if the arrays do not show it.
      others: recognised values of other parts of the config, by key such as 'decoder.dim'.

    Raises:
      ValueError: if `given` has another model.
    """
    if given is None:
        config = config_lib.base()
        config.name = name
        config.model.update(model)
        config.update_from_flattened_dict(others or {})
        if image_size:
            config.data.image_size, config.data.eval_resize = image_size, eval_resize(image_size)
        return config
    fitting = copy.deepcopy(given)
    fitting.model.update(model)
    backbone = make_backbone(given.model)
    same = {*_NETWORK} if make_backbone(fitting.model) == backbone else set()
    expected = given.model.to_dict()
    if expected["hidden"] == backbone.features:
        expected["hidden"] = 0  # means the number of features
    differences = [
        f"\n  model.{key}: {value!r} in the weights, {given.model[key]!r} in the config"
        for key, value in model.items()
        if value != expected[key] and key not in same
    ]
    flat = flatten(given)
    differences += [
        f"\n  {key}: {value!r} in the weights, {flat[key]!r} in the config"
        for key, value in (others or {}).items()
        if value != flat[key]
    ]
    if model.get("positions") == "learned" and given.data.image_size != image_size:
        differences.append(
            f"\n  data.image_size: {image_size} in the weights, whose positions are learned, "
            f"{given.data.image_size} in the config"
        )
    if differences:
        raise ValueError(
            f"the weights do not match the model of the config {given.name!r}:"
            + "".join(differences)
        )
    return given


def describe(config: ConfigDict, variables: dict[str, Any]) -> str:
    """Returns a one-line summary of the encoder."""
    model, parameters = config.model, variables["params"]
    width = f", width {model.width:g}" if model.width != 1 else ""
    stem = f"{model.stem} stem" + " (3x3, no pooling)" * (model.stem == "small")
    if model.name in NETWORKS:
        stem = _vit(config, make_backbone(model))
    text = f"{model.name}{width}, {stem}, {_millions(parameters['backbone'])} parameters"
    if "decoder" in parameters:
        decoder, size = config.decoder, _millions(parameters["decoder"])
        text += f"; decoder {decoder.dim}, {decoder.depth} blocks, {decoder.heads} heads, {size}"
        text += " parameters"
    if "head" not in parameters:
        return f"{text}; no head"
    text += f"; {model.head} head {_sizes(parameters['head'])}"
    text += f", {_millions(parameters['head'])} parameters"
    if "predictor" in parameters:
        text += f"; predictor {_sizes(parameters['predictor'])}"
    return text


def _vit(config: ConfigDict, network: Any) -> str:
    size = f" ({config.data.image_size} pixels)" if network.positions == "learned" else ""
    stem = "conv stem, " * (network.stem == "conv")
    return (
        f"{stem}patch {network.patch}, {network.depth} blocks, {network.heads} heads, "
        f"{network.positions} positions{size}"
    )


def _sizes(layers: Any) -> str:
    """Returns the lengths of the outputs of a head's linear layers."""
    names = ("hidden_layer", *sorted(name for name in layers if name.startswith("layer")), "output")
    return "-".join(str(layers[name]["kernel"].shape[-1]) for name in names if name in layers)


def _millions(tree: Any) -> str:
    return f"{sum(x.size for x in jax.tree.leaves(tree)) / 1e6:.2f} M"
