"""Compares names with lists written out from the projects' own modules."""

import pytest

from moco_jax.weights import huggingface as huggingface_files
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


DEPTH = 2


def _both(modules) -> set[str]:
    return {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}


def vit() -> set[str]:
    inner = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    blocks = [f"blocks.{block}.{layer}" for block in range(DEPTH) for layer in inner]
    return {"cls_token", "pos_embed"} | _both(["patch_embed.proj", "norm", *blocks])


def vit_conv() -> set[str]:
    """The stem of MoCo v3's `vit_conv_*`: convolutions 0, 3, 6, 9 without bias, batch norms, 12."""
    stem = {f"patch_embed.proj.{i}.weight" for i in (0, 3, 6, 9)}
    stem |= {f"patch_embed.proj.{i}.{leaf}" for i in (1, 4, 7, 10) for leaf in NORM}
    plain = {name for name in vit() if not name.startswith("patch_embed")}
    return plain | stem | _both(["patch_embed.proj.12"])


def vit_huggingface() -> set[str]:
    """Names of transformers 4, which transformers 5 writes too."""
    inner = [f"attention.attention.{part}" for part in ("query", "key", "value")]
    inner += ["attention.output.dense", "intermediate.dense", "output.dense"]
    inner += ["layernorm_before", "layernorm_after"]
    layers = [f"encoder.layer.{block}.{layer}" for block in range(DEPTH) for layer in inner]
    layers += ["layernorm", "embeddings.patch_embeddings.projection"]
    return {"embeddings.cls_token", "embeddings.position_embeddings"} | _both(layers)


@pytest.mark.parametrize("expected", [vit, vit_conv, vit_huggingface])
def test_names_of_vits_are_the_projects(expected):
    model = {"stem": "patch", "patch": 4}
    if expected is vit_conv:
        model = {"stem": "conv", "patch": 16}
    found = encoder(
        head=False, name="vit_tiny", width=1 / 6, heads=4, depth=2, positions="learned", **model
    )
    arrays = to_torch(found.variables, NAMINGS[expected.__name__], found.config)
    names = set(huggingface_files.split(arrays))
    assert {n for n in names if not n.endswith("num_batches_tracked")} == expected()


def test_names_of_the_heads_of_moco_v3():
    model = {"stem": "patch", "patch": 4, "width": 1 / 6, "heads": 4, "depth": 1}
    model |= {"head": "mlp_bn", "head_layers": 3, "predictor_layers": 2}
    found = encoder(name="vit_tiny", **model)
    arrays = to_torch(found.variables, NAMINGS["vit"], found.config)
    heads = {name for name in arrays if name.startswith(("head.", "predictor."))}
    expected = {f"head.{i}.weight" for i in (0, 3, 6)}
    expected |= {f"predictor.{i}.weight" for i in (0, 3)}
    whole = (*NORM, "num_batches_tracked")
    for norm in ("head.1", "head.4", "predictor.1"):
        expected |= {f"{norm}.{leaf}" for leaf in whole}
    for norm in ("head.7", "predictor.4"):  # without scale and bias
        expected |= {f"{norm}.{leaf}" for leaf in whole[2:]}
    assert heads == expected
