"""Other projects' names for the modules of an encoder.

A naming is one function from our module to the project's, so reading and writing use the same
table. To support another project, add its naming to `NAMINGS`.
"""

import re
from collections.abc import Callable
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
_HEADS = {
    "linear": {"output": "fc"},
    "mlp": {"hidden_layer": "fc.0", "output": "fc.2"},
}


class Naming(NamedTuple):
    """How a project names the arrays of a ResNet.

    Attributes:
      title: the project's networks, for messages.
      backbone: (stage, block, layer) -> the project's module. Stage and block count from 1; stage 0
        is the stem. `layer` is our name of the layer in the stem or block.
      classifier: the project's module from features to classes; our encoders have none.
      counts_batches: whether the batch norms have torch's counter.
    """

    title: str
    backbone: Callable[[int, int, str], str]
    classifier: str = "fc"
    counts_batches: bool = True

    def name(self, module: Path) -> str:
        """Returns the project's name of a module like ("backbone", "stage1_block1", "Conv_0")."""
        _, part, *layer = module
        block = re.fullmatch(r"stage(\d+)_block(\d+)", part)
        if block is None:
            return self.backbone(0, 0, part)
        return self.backbone(int(block[1]), int(block[2]), *layer)


def head_module(head: str, layer: str) -> str:
    """Returns the reference's name of a layer in the head of this `model.head`.

    Raises:
      ValueError: if the reference has no such head.
    """
    if head not in _HEADS:
        raise ValueError(
            f"MoCo v1 and v2 have no head like model.head={head!r}; allowed: {', '.join(_HEADS)}"
        )
    return _HEADS[head][layer]


_TORCHVISION = {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    "Conv_0": "conv1",
    "Conv_1": "conv2",
    "Conv_2": "conv3",
    "GroupedBatchNorm_0": "bn1",
    "GroupedBatchNorm_1": "bn2",
    "GroupedBatchNorm_2": "bn3",
    "shortcut_conv": "downsample.0",
    "shortcut_norm": "downsample.1",
}


def _torchvision(stage: int, block: int, layer: str) -> str:
    inner = _TORCHVISION[layer]
    return f"layer{stage}.{block - 1}.{inner}" if stage else inner


def _huggingface(stage: int, block: int, layer: str) -> str:
    kind = "normalization" if "norm" in layer.lower() else "convolution"
    if not stage:
        return f"embedder.embedder.{kind}"
    place = "shortcut" if layer.startswith("shortcut") else f"layer.{layer[-1]}"
    return f"encoder.stages.{stage - 1}.layers.{block - 1}.{place}.{kind}"


_DETECTRON2 = {
    "stem_conv": "conv1",
    "stem_norm": "conv1.norm",
    "Conv_0": "conv1",
    "Conv_1": "conv2",
    "Conv_2": "conv3",
    "GroupedBatchNorm_0": "conv1.norm",
    "GroupedBatchNorm_1": "conv2.norm",
    "GroupedBatchNorm_2": "conv3.norm",
    "shortcut_conv": "shortcut",
    "shortcut_norm": "shortcut.norm",
}


def _detectron2(stage: int, block: int, layer: str) -> str:
    inner = _DETECTRON2[layer]
    return f"res{stage + 1}.{block - 1}.{inner}" if stage else f"stem.{inner}"


NAMINGS = {
    "torchvision": Naming("a ResNet of torchvision or timm", _torchvision),
    "huggingface": Naming("a ResNet of Hugging Face", _huggingface, classifier="classifier.1"),
    "detectron2": Naming("a backbone of Detectron2", _detectron2, counts_batches=False),
}
