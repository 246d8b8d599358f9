"""A dilated ResNet: the same parameters, the last stage at twice the resolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from tests.convolution import convolve, normalized


def network(block, **options) -> ResNet:
    return ResNet((1, 1, 1, 2), block, width=0.0625, **options)


def shapes(net: ResNet):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), images)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_the_parameters_are_those_of_the_network_without_dilation(block, stem):
    assert shapes(network(block, stem=stem, dilated=True)) == shapes(network(block, stem=stem))


@pytest.mark.parametrize(
    ("stem", "dilated", "stride", "side"),
    [("imagenet", False, 32, 17), ("imagenet", True, 16, 33), ("small", True, 4, 129)],
)
def test_maps_have_the_stride_of_the_network(stem, dilated, stride, side):
    net = network(BasicBlock, stem=stem, dilated=dilated)
    images = jax.ShapeDtypeStruct((2, 513, 513, 3), jnp.float32)
    apply = lambda v, x: net.apply(v, x, train=False, method="maps")  # noqa: E731
    maps = jax.eval_shape(apply, shapes(net), images)
    assert maps.shape == (2, side, side, 32)
    assert net.stride == stride and side == -(-513 // stride)


def _basic(x, p, s):
    y = np.maximum(normalized(convolve(x, _kernel(p, 0), 2), *_norm(p, s, 0)), 0)
    return normalized(convolve(y, _kernel(p, 1), 2), *_norm(p, s, 1))


def _bottleneck(x, p, s):
    y = np.maximum(normalized(convolve(x, _kernel(p, 0)), *_norm(p, s, 0)), 0)
    y = np.maximum(normalized(convolve(y, _kernel(p, 1), 2), *_norm(p, s, 1)), 0)
    return normalized(convolve(y, _kernel(p, 2)), *_norm(p, s, 2))


def _kernel(params, number):
    return params[f"Conv_{number}"]["kernel"]


def _norm(params, stats, number):
    name = f"GroupedBatchNorm_{number}"
    return params[name], stats[name]


@pytest.mark.parametrize(("block", "plain"), [(BasicBlock, _basic), (Bottleneck, _bottleneck)])
def test_the_last_stage_equals_numpys(block, plain):
    net = network(block, stem="small", dilated=True)
    images = jax.random.normal(jax.random.key(1), (1, 16, 20, 3))

    # Statistics and scales that differ from the initial ones, as after training.
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.normal(0.2, 0.2, x.shape).astype(np.float32) ** (1 + (x.ndim == 1)),
        shapes(net),
    )

    @jax.jit
    def run(variables, images):
        maps, seen = net.apply(
            variables, images, train=False, method="maps", capture_intermediates=True
        )
        return maps, seen["intermediates"]["stage3_block1"]["__call__"][0]

    maps, x = jax.device_get(run(variables, images))
    x = x[0].astype(np.float64)
    assert x.shape[:2] == maps.shape[1:3] == (4, 5)
    for name in ("stage4_block1", "stage4_block2"):
        p, s = variables["params"][name], variables["batch_stats"][name]
        shortcut = x
        if "shortcut_conv" in p:
            shortcut = convolve(x, p["shortcut_conv"]["kernel"])
            shortcut = normalized(shortcut, p["shortcut_norm"], s["shortcut_norm"])
        x = np.maximum(plain(x, p, s) + shortcut, 0)
    np.testing.assert_allclose(maps[0], x, rtol=1e-4, atol=1e-5)
