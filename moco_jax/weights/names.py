"""Other projects' names for the arrays of an encoder.

Reading and writing use the same tables. To support another project, add its column to `_RESNET` or
`_VIT` and its naming to `NAMINGS`.
"""

import re
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from moco_jax.models import vit

Path = tuple[str, ...]

# Our leaf names to torch's.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
COUNTER = "num_batches_tracked"  # in torch's batch norm; evaluation does not use it

# The layers of MoCo v1's and v2's heads: a linear layer, or a sequence with a ReLU.
_HEADS = {"linear": {"output": ""}, "mlp": {"hidden_layer": ".0", "output": ".2"}}
BATCH_NORM_MLP = "mlp_bn"  # MoCo v3's head: a sequence of linear layer, batch norm and ReLU

# Our layers in the stem and in a block, to those of torchvision, Hugging Face and Detectron2.
_RESNET = {
    "stem_conv": ("conv1", "convolution", "conv1"),
    "stem_norm": ("bn1", "normalization", "conv1.norm"),
    "Conv_0": ("conv1", "layer.0.convolution", "conv1"),
    "Conv_1": ("conv2", "layer.1.convolution", "conv2"),
    "Conv_2": ("conv3", "layer.2.convolution", "conv3"),
    "GroupedBatchNorm_0": ("bn1", "layer.0.normalization", "conv1.norm"),
    "GroupedBatchNorm_1": ("bn2", "layer.1.normalization", "conv2.norm"),
    "GroupedBatchNorm_2": ("bn3", "layer.2.normalization", "conv3.norm"),
    "shortcut_conv": ("downsample.0", "shortcut.convolution", "shortcut"),
    "shortcut_norm": ("downsample.1", "shortcut.normalization", "shortcut.norm"),
}
# Our arrays and layers beside and in the blocks of a ViT, to those of timm and Hugging Face 4. The
# latter has three arrays for `qkv`, see `huggingface.fused`.
_VIT = {
    "cls_token": ("cls_token", "embeddings.cls_token"),
    "positions": ("pos_embed", "embeddings.position_embeddings"),
    "patch_embed": ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    "norm": ("norm", "layernorm"),
    "norm1": ("norm1", "layernorm_before"),
    "qkv": ("attn.qkv", "attention.attention.qkv"),
    "proj": ("attn.proj", "attention.output.dense"),
    "norm2": ("norm2", "layernorm_after"),
    "fc1": ("mlp.fc1", "intermediate.dense"),
    "fc2": ("mlp.fc2", "output.dense"),
}
# MoCo v3's convolutional stem: a sequence of convolution, batch norm and ReLU, then a convolution.
_CONV_STEM = {"patch_embed": "patch_embed.proj.12"} | {
    f"stem_{kind}{i + 1}": f"patch_embed.proj.{3 * i + place}"
    for i in range(4)
    for kind, place in (("conv", 0), ("norm", 1))
}
# Our arrays and layers beside the blocks of a masked autoencoder's decoder, to those of MAE's code
# and of Hugging Face. Its blocks have the names of a ViT's.
_DECODER = {
    "embed": ("decoder_embed", "decoder.decoder_embed"),
    "mask_token": ("mask_token", "decoder.mask_token"),
    "positions": ("decoder_pos_embed", "decoder.decoder_pos_embed"),
    "norm": ("decoder_norm", "decoder.decoder_norm"),
    "pixels": ("decoder_pred", "decoder.decoder_pred"),
}


class Naming(NamedTuple):
    """How a project names the arrays of a backbone."""

    title: str  # the project's networks, for messages
    layers: Mapping[str, str]  # our layers to the project's
    block: str  # prefix of a block's layers, with places for the numbers of the stage and the block
    stem: str = ""  # prefix of the layers outside the blocks
    first: int = 0  # the first of these numbers; the last one counts from 0
    classifier: str = "fc"  # the module from features to classes; our encoders have none
    counts_batches: bool = True  # whether the batch norms have torch's counter
    decoder: Mapping[str, str] = types.MappingProxyType({})  # the same as `layers`, of the decoder
    decoder_block: str = ""

    def name(self, module: Path) -> str:
        """Returns the project's name of a module like ("backbone", "stage1_block1", "Conv_0").

        The name of an array without a module is found in the same way.
        """
        decodes = module[0] == "decoder"
        if len(module) == 2:
            return self.decoder[module[1]] if decodes else self.stem + self.layers[module[1]]
        layer = self.layers[module[-1]]
        first, *rest = (int(number) - 1 for number in re.findall(r"\d+", module[1]))
        block = self.decoder_block if decodes else self.block
        return block.format(first + self.first, *rest) + layer

    def array(self, path: Path, head: str) -> str:
        """Returns the project's name of an array like ("backbone", "norm", "scale").

        Args:
          path: of the array in the parameters or batch statistics.
          head: the `model.head` of the encoder.
        """
        *module, leaf = path
        if leaf not in LEAVES:
            return self.name(path)
        if path[0] in ("backbone", "decoder"):
            found = self.name(tuple(module))
        elif path[0] == "head":
            found = head_module(head, module[1], self.classifier)
        else:
            found = f"{path[0]}.{_place(module[1])}"
        return f"{found}.{LEAVES[leaf]}"


def head_problem(head: str) -> str:
    """Returns that the references have no such head, "" if they have."""
    known = head in _HEADS or head == BATCH_NORM_MLP
    return "" if known else f"MoCo v1, v2 and v3 have no head like model.head={head!r}"


def head_module(head: str, layer: str, classifier: str = "fc") -> str:
    """Returns the references' name of a layer in the head of this `model.head`.

    Args:
      classifier: the module that the head replaces.

    Raises:
      ValueError: if the references have no such head.
    """
    if problem := head_problem(head):
        raise ValueError(f"{problem}; allowed: {', '.join((*_HEADS, BATCH_NORM_MLP))}")
    if head == BATCH_NORM_MLP:
        return f"{classifier}.{_place(layer)}"
    return f"{classifier}{_HEADS[head][layer]}"


def _place(layer: str) -> int:
    """Returns the place of a layer of v3's head or predictor, such as `norm2`, in its sequence."""
    kind, number = layer.rstrip("0123456789"), int(re.findall(r"\d+", layer)[0])
    return 3 * (number - 1) + (kind == "norm")


def _column(table: Mapping[str, tuple[str, ...]], column: int) -> dict[str, str]:
    return {ours: theirs[column] for ours, theirs in table.items()}


NAMINGS = {
    "torchvision": Naming(
        "a ResNet of torchvision or timm", _column(_RESNET, 0), "layer{}.{}.", first=1
    ),
    "huggingface": Naming(
        "a ResNet of Hugging Face",
        _column(_RESNET, 1),
        "encoder.stages.{}.layers.{}.",
        stem="embedder.embedder.",
        classifier="classifier.1",
    ),
    "detectron2": Naming(
        "a backbone of Detectron2",
        _column(_RESNET, 2),
        "res{}.{}.",
        stem="stem.",
        first=2,
        counts_batches=False,
    ),
    "vit": Naming(
        "a ViT of timm",
        _column(_VIT, 0),
        "blocks.{}.",
        classifier="head",
        decoder=_column(_DECODER, 0),
        decoder_block="decoder_blocks.{}.",
    ),
    "vit_conv": Naming(
        "a ViT of MoCo v3 with a convolutional stem",
        _column(_VIT, 0) | _CONV_STEM,
        "blocks.{}.",
        classifier="head",
    ),
    "vit_huggingface": Naming(
        "a ViT of Hugging Face",
        _column(_VIT, 1),
        "encoder.layer.{}.",
        classifier="classifier",
        decoder=_column(_DECODER, 1),
        decoder_block="decoder.decoder_layers.{}.",
    ),
}
VITS = ("vit", "vit_conv", "vit_huggingface")


def naming_of(model: Any) -> str:
    """Returns the key of NAMINGS under which the code of MoCo's authors has a config's `model`."""
    if model.name not in vit.NETWORKS:
        return "torchvision"
    return "vit_conv" if model.stem == "conv" else "vit"
