"""Recognises a ResNet and its head from the shapes of their arrays."""

from typing import Any

import jax
from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.convert.names import Naming, head_module
from moco_jax.convert.variables import Arrays
from moco_jax.models.resnet import NAMES, BasicBlock, Bottleneck, resnet

_STEMS = {7: "imagenet", 3: "small"}  # by the kernel size of the first convolution


def backbone(arrays: Arrays, naming: Naming, source: str) -> dict[str, Any]:
    """Returns `name`, `stem` and `width` for `config.model`.

    Raises:
      ValueError: if `moco_jax.models.resnet` has no such network.
    """

    def shape(*module: str) -> tuple[int, ...]:
        array = arrays.get(f"{naming.name(('backbone', *module))}.weight")
        return () if array is None else tuple(array.shape)

    stem, stages = shape("stem_conv"), []
    for stage in range(1, 5):
        blocks = 0
        while shape(f"stage{stage}_block{blocks + 1}", "Conv_0"):
            blocks += 1
        stages.append(blocks)
    if len(stem) != 4 or not all(stages):
        raise ValueError(f"{source} is not a ResNet of four stages ({naming.title})")
    if stem[1] != 3 or stem[2:] not in ((7, 7), (3, 3)):
        raise ValueError(
            f"{source}: the first convolution is {stem[2]}x{stem[3]} on {stem[1]} channels; "
            "allowed: 7x7 or 3x3 on 3 channels"
        )
    last, middle = shape("stage1_block1", "Conv_2"), shape("stage1_block1", "Conv_1")
    block, filters = (Bottleneck, last[0] // 4) if last else (BasicBlock, middle[0])
    groups = middle[0] // middle[1]
    base_width = middle[0] * 64 // (groups * filters)
    found = tuple(stages), block, groups, base_width
    return {
        "name": _model_name(*found, source),
        "stem": _STEMS[stem[2]],
        "width": filters / 64,
    }


def _model_name(stages: tuple[int, ...], block: type, groups: int, base: int, source: str) -> str:
    for name in NAMES:
        known = resnet(name)
        if (stages, block, groups, base) == (
            known.stage_sizes,
            known.block,
            known.groups,
            known.base_width,
        ):
            return name
    raise ValueError(
        f"{source} is an unsupported ResNet: {block.__name__}s {stages}, {groups} groups of {base} "
        f"channels; allowed: {', '.join(NAMES)}"
    )


def head(arrays: Arrays) -> dict[str, Any]:
    """Returns `head`, `hidden` and `dim` of the reference's head; {} without a head."""
    output = arrays.get(f"{head_module('mlp', 'output')}.weight")
    hidden = arrays.get(f"{head_module('mlp', 'hidden_layer')}.weight")
    linear = arrays.get(f"{head_module('linear', 'output')}.weight")
    if output is not None and hidden is not None:
        size = 0 if hidden.shape[0] == hidden.shape[1] else hidden.shape[0]
        return {"head": "mlp", "hidden": size, "dim": output.shape[0]}
    if linear is not None:
        return {"head": "linear", "dim": linear.shape[0]}
    return {}


def config_of(name: str, model: dict[str, Any], given: ConfigDict | None) -> ConfigDict:
    """Returns the config of an encoder that another project trained.

    Args:
      name: of the experiment, used if `given` is None.
      model: the recognised values of `config.model`.
      given: the experiment's config, which also defines how images are prepared; None prepares
        them as for ImageNet.

    Raises:
      ValueError: if `given` has another model.
    """
    if given is None:
        config = config_lib.base()
        config.name = name
        config.model.update(model)
        return config
    other = {key: value for key, value in model.items() if _model_value(given, key) != value}
    if other:
        differences = "\n".join(
            f"  model.{key}: {value!r} in the weights, {given.model[key]!r} in the config"
            for key, value in other.items()
        )
        raise ValueError(
            f"the weights do not match the model of the config {given.name!r}:\n{differences}"
        )
    return given


def _model_value(config: ConfigDict, key: str) -> Any:
    """Returns `config.model[key]`, with 0 for `hidden` equal to the number of features."""
    value = config.model[key]
    model = resnet(config.model.name, width=config.model.width)
    return 0 if key == "hidden" and value == model.features else value


def describe(config: ConfigDict, variables: dict[str, Any]) -> str:
    """Returns a one-line summary of the encoder."""
    model, parameters = config.model, variables["params"]
    width = f", width {model.width:g}" if model.width != 1 else ""
    text = f"{model.name}{width}, {model.stem} stem, {_millions(parameters['backbone'])} parameters"
    if "head" not in parameters:
        return f"{text}; no head"
    layers = parameters["head"]
    sizes = [layers[k]["kernel"].shape[-1] for k in ("hidden_layer", "output") if k in layers]
    size = "-".join(str(size) for size in sizes)
    return f"{text}; {model.head} head {size}, {_millions(layers)} parameters"


def _millions(tree: Any) -> str:
    return f"{sum(x.size for x in jax.tree.leaves(tree)) / 1e6:.2f} M"
