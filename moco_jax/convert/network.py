"""Which ResNet it is, read off the shapes of its arrays."""

from typing import Any

from ml_collections import ConfigDict

from moco_jax import config as config_lib
from moco_jax.convert.names import Layout, head_module
from moco_jax.convert.variables import Arrays
from moco_jax.models.resnet import NAMES, BasicBlock, Bottleneck, resnet

_STEMS = {7: "imagenet", 3: "small"}  # by the size of the first convolution


def backbone(arrays: Arrays, layout: Layout, source: str) -> dict[str, Any]:
    """Returns `name`, `stem` and `width` of the config's model.

    Raises:
      ValueError: if it is no ResNet that we have; names what it is and what is allowed.
    """

    def shape(*module: str) -> tuple[int, ...]:
        array = arrays.get(f"{layout.name(('backbone', *module))}.weight")
        return () if array is None else tuple(array.shape)

    stem, stages = shape("stem_conv"), []
    for stage in range(1, 5):
        blocks = 0
        while shape(f"stage{stage}_block{blocks + 1}", "Conv_0"):
            blocks += 1
        stages.append(blocks)
    if len(stem) != 4 or not all(stages):
        raise ValueError(f"{source} is no ResNet of four stages ({layout.title})")
    if stem[1] != 3 or stem[2:] not in ((7, 7), (3, 3)):
        raise ValueError(
            f"{source}: its first convolution is {stem[2]}x{stem[3]} on {stem[1]} channels; "
            "allowed: 7x7 or 3x3 on 3 channels"
        )
    last, middle = shape("stage1_block1", "Conv_2"), shape("stage1_block1", "Conv_1")
    block, filters = (Bottleneck, last[0] // 4) if last else (BasicBlock, middle[0])
    groups = middle[0] // middle[1]
    base_width = middle[0] * 64 // (groups * filters)
    found = tuple(stages), block, groups, base_width
    return {
        "name": _name_of(*found, source),
        "stem": _STEMS[stem[2]],
        "width": filters / 64,
    }


def _name_of(stages: tuple[int, ...], block: type, groups: int, base: int, source: str) -> str:
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
        f"{source} is a ResNet of {block.__name__}s {stages}, {groups} groups of {base} channels, "
        f"which is none of {', '.join(NAMES)}"
    )


def head(arrays: Arrays) -> dict[str, Any]:
    """Returns `head`, `hidden` and `dim` of the reference's head; {} if there is none."""
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
      name: of the experiment, if none is given.
      model: what was recognised of `config.model`.
      given: the experiment that it belongs to; it tells how images are prepared. By default that
        is ImageNet's way.

    Raises:
      ValueError: if the experiment is of another network.
    """
    if given is None:
        config = config_lib.base()
        config.name = name
        config.model.update(model)
        return config
    other = {key: value for key, value in model.items() if _plain(given, key) != value}
    if other:
        told = "\n".join(
            f"  model.{key}: {value!r} in the weights, {given.model[key]!r} in the config"
            for key, value in other.items()
        )
        raise ValueError(f"the weights are of another network than --config={given.name}:\n{told}")
    return given


def _plain(config: ConfigDict, key: str) -> Any:
    """Returns a value of the config's model; 0 for as many hidden units as there are features."""
    value = config.model[key]
    model = resnet(config.model.name, width=config.model.width)
    return 0 if key == "hidden" and value == model.features else value


def describe(config: ConfigDict, variables: dict[str, Any]) -> str:
    """Returns in a line what the encoder is."""
    model, parameters = config.model, variables["params"]
    width = f" of width {model.width:g}" if model.width != 1 else ""
    text = f"{model.name}{width}, {model.stem} stem, {_millions(parameters['backbone'])} parameters"
    if "head" not in parameters:
        return f"{text}; no head"
    layers = parameters["head"]
    sizes = [layers[k]["kernel"].shape[-1] for k in ("hidden_layer", "output") if k in layers]
    size = "-".join(str(size) for size in sizes)
    return f"{text}; {model.head} head to {size}, {_millions(layers)}"


def _millions(tree: Any) -> str:
    import jax

    return f"{sum(x.size for x in jax.tree.leaves(tree)) / 1e6:.2f} M"
