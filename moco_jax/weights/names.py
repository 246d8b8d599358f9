"""Other projects' names for the modules of an encoder.

Reading and writing use the same table. To support another project, add its column to `_LAYERS` and
its naming to `NAMINGS`.
"""

import re
from typing import NamedTuple

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

# The head's layers in the reference's `fc`: a linear layer (v1) or a sequence with a ReLU (v2).
_HEADS = {"linear": {"output": "fc"}, "mlp": {"hidden_layer": "fc.0", "output": "fc.2"}}

# Our layers in the stem and in a block, to those of torchvision, Hugging Face and Detectron2.
_LAYERS = {
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


class Naming(NamedTuple):
    """How a project names the arrays of a ResNet."""

    title: str  # the project's networks, for messages
    column: int  # the project's column of `_LAYERS`
    stem: str  # prefix of the stem's layers
    block: str  # prefix of a block's layers, with places for the numbers of the stage and the block
    first_stage: int  # number of the first stage; blocks count from 0
    classifier: str = "fc"  # the module from features to classes; our encoders have none
    counts_batches: bool = True  # whether the batch norms have torch's counter

    def name(self, module: Path) -> str:
        """Returns the project's name of a module like ("backbone", "stage1_block1", "Conv_0")."""
        layer = _LAYERS[module[-1]][self.column]
        block = re.fullmatch(r"stage(\d+)_block(\d+)", module[1])
        if block is None:
            return self.stem + layer
        stage = int(block[1]) - 1 + self.first_stage
        return self.block.format(stage, int(block[2]) - 1) + layer


def head_problem(head: str) -> str:
    """Returns that the reference has no such head, "" if it has."""
    return "" if head in _HEADS else f"MoCo v1 and v2 have no head like model.head={head!r}"


def head_module(head: str, layer: str) -> str:
    """Returns the reference's name of a layer in the head of this `model.head`.

    Raises:
      ValueError: if the reference has no such head.
    """
    if problem := head_problem(head):
        raise ValueError(f"{problem}; allowed: {', '.join(_HEADS)}")
    return _HEADS[head][layer]


NAMINGS = {
    "torchvision": Naming("a ResNet of torchvision or timm", 0, "", "layer{}.{}.", first_stage=1),
    "huggingface": Naming(
        "a ResNet of Hugging Face",
        1,
        "embedder.embedder.",
        "encoder.stages.{}.layers.{}.",
        first_stage=0,
        classifier="classifier.1",
    ),
    "detectron2": Naming(
        "a backbone of Detectron2", 2, "stem.", "res{}.{}.", first_stage=2, counts_batches=False
    ),
}
