"""Backbones of all families behind one interface, and what is wrong with their keys."""

import jax
import numpy as np
import pytest

from moco_jax import config as config_lib
from moco_jax.models.backbones import BACKBONES, make_backbone, problems
from moco_jax.models.resnet import BasicBlock, Bottleneck, ResNet


def model(**changes):
    config = config_lib.base()
    vit = str(changes.get("name", "")).startswith("vit")
    config.model.update({"stem": "patch"} if vit else {}, **changes)
    return config.model


@pytest.mark.parametrize("name", ["resnet10", "resnet50", "vit_tiny"])
def test_the_blocks_are_parameters_and_hold_most_of_them(name):
    backbone = make_backbone(model(name=name))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    variables = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=True), images)
    params = variables["params"]
    outside = set(params) - set(backbone.blocks)
    assert set(backbone.blocks) <= set(params)
    assert outside in ({"stem_conv", "stem_norm"}, {"cls_token", "patch_embed", "norm"})
    features = jax.eval_shape(lambda v, x: backbone.apply(v, x, train=False), variables, images)
    assert features.shape == (2, backbone.features) and features.dtype == np.float32


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown model.name 'vit_smal'; did you mean 'vit_small'"):
        make_backbone(model(name="vit_smal"))


@pytest.mark.parametrize("name", BACKBONES)
def test_the_named_networks_have_no_problems_at_224_pixels(name):
    assert list(problems(model(name=name), 224)) == []


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        (
            dict(name="vit_tiny", stem="small"),
            32,
            "no stem of a ViT, vit_tiny: --config.model.stem=patch or",
        ),
        (
            dict(name="resnet18", stem="patch"),
            32,
            "no stem of a ResNet, resnet18: --config.model.stem=imagenet",
        ),
        (dict(name="resnet18", patch=4), 32, "model.patch=4 is a key of a ViT"),
        (
            dict(name="resnet18", freeze_patch=True),
            32,
            "leave it at False, or choose a ViT: --config.model.name=vit_small",
        ),
        (dict(name="vit_tiny", zero_init_residual=True), 32, "is a key of a ResNet"),
        (dict(name="vit_tiny"), 40, "data.image_size may be 32 or 48"),
        (dict(name="vit_tiny"), 8, "data.image_size may be 16, or model.patch 4"),
        (dict(name="vit_tiny", patch=5), 16, "may be 15 or 20, or model.patch 4 or 8"),
        (dict(name="vit_tiny", patch=5), 7, "may be 5 or 10, or model.patch 1"),
        (dict(name="vit_tiny", heads=5), 32, "model.heads=5 must divide the 192 values"),
        (
            dict(name="vit_tiny", width=0.03),
            32,
            "makes tokens of 6 values; they must be a multiple of 4",
        ),
        (dict(name="vit_tiny", width=0.001), 32, "makes tokens of 0 values"),
        (dict(name="vit_tiny", stem="conv", patch=4), 32, "model.patch must be 16, not 4"),
        (dict(name="vit_tiny", stem="conv", freeze_patch=True), 32, "use model.stem='patch'"),
        (dict(name="resnet18", width=0.01), 32, "leaves layers without channels; at least 0.0156"),
    ],
)
def test_problems_name_the_key_and_what_is_allowed(changes, size, message):
    found = list(problems(model(**changes), size))
    assert len(found) == 1 and message in found[0]


@pytest.mark.parametrize(("block", "last"), [(BasicBlock, 1), (Bottleneck, 2)])
def test_the_last_scale_of_a_block_starts_at_zero_if_asked_for(block, last):
    images = np.zeros((2, 4, 4, 3), np.float32)
    for zero in (True, False):
        network = ResNet((1,), block, stem="small", width=1 / 16, zero_init_residual=zero)
        params = network.init(jax.random.key(0), images, train=False)["params"]["stage1_block1"]
        for i in range(last + 1):
            scale = params[f"GroupedBatchNorm_{i}"]["scale"]
            np.testing.assert_array_equal(scale, 0 if zero and i == last else 1)


def test_zero_init_residual_reaches_the_network():
    assert make_backbone(model(name="resnet18", zero_init_residual=True)).zero_init_residual
