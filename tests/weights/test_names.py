"""Compares a ResNet-50's names with lists written out from the projects' own modules."""

import pytest

from moco_jax.weights.names import NAMINGS
from moco_jax.weights.variables import to_torch
from tests.weights.networks import encoder

NORM = ("weight", "bias", "running_mean", "running_var")
BLOCKS = (3, 4, 6, 3)


def detectron2() -> set[str]:
    """Names in BasicStem (conv1) and in the BottleneckBlocks of res2 to res5, with their norms."""
    convolutions = ["stem.conv1"]
    for stage, blocks in zip((2, 3, 4, 5), BLOCKS, strict=True):
        for block in range(blocks):
            inner = ["conv1", "conv2", "conv3"] + ["shortcut"] * (block == 0)
            convolutions += [f"res{stage}.{block}.{name}" for name in inner]
    return {f"{c}.weight" for c in convolutions} | {
        f"{c}.norm.{leaf}" for c in convolutions for leaf in NORM
    }


def torchvision() -> set[str]:
    names = {"conv1.weight"} | {f"bn1.{leaf}" for leaf in NORM}
    for stage, blocks in zip((1, 2, 3, 4), BLOCKS, strict=True):
        for block in range(blocks):
            place = f"layer{stage}.{block}"
            for i in (1, 2, 3):
                names |= {f"{place}.conv{i}.weight"} | {f"{place}.bn{i}.{leaf}" for leaf in NORM}
        names |= {f"layer{stage}.0.downsample.0.weight"}
        names |= {f"layer{stage}.0.downsample.1.{leaf}" for leaf in NORM}
    return names


def huggingface() -> set[str]:
    convolutions = ["embedder.embedder"]
    for stage, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            inner = ["layer.0", "layer.1", "layer.2"] + ["shortcut"] * (block == 0)
            convolutions += [f"encoder.stages.{stage}.layers.{block}.{name}" for name in inner]
    return {f"{c}.convolution.weight" for c in convolutions} | {
        f"{c}.normalization.{leaf}" for c in convolutions for leaf in NORM
    }


@pytest.mark.parametrize("expected", [detectron2, torchvision, huggingface])
def test_names_are_the_projects(expected):
    found = encoder(head=False, name="resnet50", stem="imagenet", width=1 / 16)
    naming = NAMINGS[expected.__name__]
    arrays = to_torch(found.variables, naming, found.config)
    counters = {name for name in arrays if name.endswith("num_batches_tracked")}
    assert set(arrays) - counters == expected()
    # Each of the 53 batch norms has torch's counter, except in Detectron2.
    assert len(counters) == (53 if naming.counts_batches else 0)
    assert len(expected()) == 53 * 5
