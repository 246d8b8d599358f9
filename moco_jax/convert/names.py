"""What other projects call the modules of an encoder.

Every layout is one function from our module to theirs, so the same table reads and writes. A layout
of another family of networks is another function in `LAYOUTS`, chosen by its name.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

Path = tuple[str, ...]

# Our arrays of a module, by torch's names for them.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
COUNTER = "num_batches_tracked"  # of torch's batch norm, which has no meaning in evaluation

# The head's layers in the reference's `fc`, a linear layer (v1) or a sequence with a ReLU (v2).
_HEADS = {
    "linear": {"output": "fc"},
    "mlp": {"hidden_layer": "fc.0", "output": "fc.2"},
}


class Layout(NamedTuple):
    """How a project names its arrays.

    Attributes:
      title: for messages.
      backbone: (part, block, layer) -> their module. `part` is 0 for the stem, else the stage's
        number; `layer` is what the stem or the block calls the layer.
      classifier: their module that maps features to classes, which no encoder has.
      counts_batches: whether batch norms have torch's counter.
    """

    title: str
    backbone: Callable[[int, int, str], str]
    classifier: str = "fc"
    counts_batches: bool = True

    def name(self, module: Path) -> str:
        """Returns their name of our module, such as ("backbone", "stage1_block1", "Conv_0")."""
        _, part, *layer = module
        block = re.fullmatch(r"stage(\d+)_block(\d+)", part)
        if block is None:
            return self.backbone(0, 0, part)
        return self.backbone(int(block[1]), int(block[2]), *layer)


def head_module(head: str, layer: str) -> str:
    """Returns the reference's name of a layer of the head of this `model.head`.

    Raises:
      ValueError: if the reference has no such head.
    """
    if head not in _HEADS:
        raise ValueError(
            f"the layout of MoCo v1 and v2 has no head {head!r}; allowed: {', '.join(_HEADS)}"
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


LAYOUTS = {
    "torchvision": Layout("a ResNet of torchvision or timm", _torchvision),
    "huggingface": Layout("a ResNet of Hugging Face", _huggingface, classifier="classifier.1"),
    "detectron2": Layout("a backbone of Detectron2", _detectron2, counts_batches=False),
}
