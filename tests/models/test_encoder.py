import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models.encoder import described_groups, make_encoder, norm_groups
from moco_jax.models.heads import MLPHead
from moco_jax.models.resnet import padded_conv, resnet
from tests.tiny import tiny_config


def count(module, *args, **kwargs) -> int:
    init = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(init["params"]))


# torchvision's published parameter counts minus the classifier's (features + 1) x 1000.
@pytest.mark.parametrize(
    ("name", "parameters", "features"),
    [
        ("resnet18", 11_689_512 - 513_000, 512),
        ("resnet34", 21_797_672 - 513_000, 512),
        ("resnet50", 25_557_032 - 2_049_000, 2048),
        ("resnet101", 44_549_160 - 2_049_000, 2048),
        ("resnet152", 60_192_808 - 2_049_000, 2048),
        ("resnext50_32x4d", 25_028_904 - 2_049_000, 2048),
        ("resnext101_32x8d", 88_791_336 - 2_049_000, 2048),
        ("resnext101_64x4d", 83_455_272 - 2_049_000, 2048),
        ("wide_resnet50_2", 68_883_240 - 2_049_000, 2048),
        ("wide_resnet101_2", 126_886_696 - 2_049_000, 2048),
    ],
)
def test_parameter_counts_are_torchvisions(name, parameters, features):
    model = resnet(name)
    assert count(model, jnp.zeros((1, 64, 64, 3)), train=True) == parameters
    assert model.features == features


def test_width_multiplies_the_channels_of_every_layer():
    # The paper's table gives R50w2x 94 M parameters (Kolesnikov et al. 2019: 93 M).
    wide = resnet("resnet50", width=2)
    assert wide.features == 4096
    assert round(count(wide, jnp.zeros((1, 64, 64, 3)), train=True) / 1e6) in (93, 94)


def test_an_unknown_name_raises_and_lists_the_known():
    with pytest.raises(
        ValueError, match="unknown model.name 'resnet5'; allowed: resnet10, resnet18"
    ):
        resnet("resnet5")


def test_convolutions_are_initialised_kaiming_fan_out():
    variables = resnet("resnet18").init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=True)
    kernel = variables["params"]["stage4_block2"]["Conv_1"]["kernel"]
    assert float(kernel.std()) == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)


def test_the_demos_stem_is_initialised_as_torchs_convolution():
    """Uniform within 1 / sqrt(fan_in), of 27 inputs: torch's kaiming_uniform_(a=sqrt(5))."""
    model = resnet("resnet18", stem="small", stem_init="fan_in")
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=True)["params"]
    kernel = params["stem_conv"]["kernel"]
    assert float(kernel.std()) == pytest.approx(1 / 9, rel=0.03)
    assert 0.19 < float(jnp.abs(kernel).max()) <= 1 / math.sqrt(27)
    other = params["stage1_block1"]["Conv_0"]["kernel"]
    assert float(other.std()) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)


def test_heads_are_initialised_as_torchs_linear():
    params = MLPHead(dim=128).init(jax.random.key(0), jnp.zeros((1, 512)))["params"]
    assert params["hidden_layer"]["kernel"].shape == (512, 512)
    for layer in ("hidden_layer", "output"):
        for leaf in params[layer].values():
            bound = 1 / math.sqrt(512)
            assert float(jnp.abs(leaf).max()) <= bound
            assert float(leaf.std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_strided_convolutions_pad_as_in_torch():
    """torch's first 3x3 window at stride 2 has rows -1, 0, 1; padding 'SAME' gives rows 0, 1, 2."""
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    y = padded_conv(1, 3, 2).apply({"params": {"kernel": jnp.ones((3, 3, 1, 1))}}, x)
    np.testing.assert_array_equal(y[0, :, :, 0], [[10, 24], [51, 90]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_are_unit_vectors_in_float32(dtype):
    encoder = make_encoder(tiny_config(dtype=dtype))
    x = jax.random.normal(jax.random.key(1), (16, 8, 8, 3))
    variables = encoder.init(jax.random.key(0), x)
    keys = encoder.apply(variables, x, train=False)
    assert keys.shape == (16, 16) and keys.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(keys, axis=1), 1, rtol=1e-5)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))


def test_the_groups_of_a_network_in_words():
    vit = {"model__name": "vit_tiny", "model__stem": "patch", "model__predictor_layers": 1}
    assert norm_groups(tiny_config()) == 8
    assert norm_groups(tiny_config(**vit)) == 8
    assert norm_groups(tiny_config(**vit, model__predictor_last_norm=False)) == 0
    found = [described_groups(groups) for groups in (8, 1, 0)]
    assert found == ["8 batch-norm groups", "1 batch-norm group", "no batch norm"]
