"""Compares the products of levels and weights of each platform with float64."""

import jax
import numpy as np
import pytest
from jax import lax

from moco_jax.data.augment import resampling
from moco_jax.data.augment.resampling import in_float16, in_float32
from moco_jax.parallel import platforms


def in_three_bfloat16(equation, pixels, weights):
    """Computes what a TPU does for `Precision.HIGH`; the third product is 0: levels are exact."""
    high = lax.reduce_precision(weights, exponent_bits=8, mantissa_bits=7)
    low = lax.reduce_precision(weights - high, exponent_bits=8, mantissa_bits=7)
    return in_float32(equation, pixels, high) + in_float32(equation, pixels, low)


PRODUCTS = [
    (in_float32, 0.001),
    (in_three_bfloat16, 0.01),
    (in_float16, 0.07),
]


@pytest.mark.parametrize("product, bound", PRODUCTS)
def test_products_are_exact_to_a_fraction_of_a_level(product, bound):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 4, 3, 60), np.uint8)
    weights = rng.random((2, 7, 60)).astype(np.float32)
    weights /= weights.sum(-1, keepdims=True)
    got = jax.jit(product, static_argnums=0)("bhcw,bxw->bhcx", pixels, weights)
    expected = np.einsum("bhcw,bxw->bhcx", pixels.astype(float), weights.astype(float))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=bound)


@pytest.mark.parametrize("product", [product for product, _ in PRODUCTS])
def test_a_weight_of_one_is_exact(product):
    pixels = np.arange(256, dtype=np.uint8)[None, :, None]
    one = np.ones((1, 1, 1), np.float32)
    got = jax.jit(product, static_argnums=0)("bpw,bxw->bpx", pixels, one)
    np.testing.assert_array_equal(got, pixels.astype(np.float32))


@pytest.mark.parametrize("platform, dtype", [("cpu", "f32"), ("tpu", "f32"), ("cuda", "f16")])
def test_dtype_of_the_products_on_each_platform(platform, dtype):
    planes, weights = np.zeros((1, 4, 3, 5), np.uint8), np.zeros((1, 2, 5), np.float32)
    traced = jax.jit(resampling.resample).trace(planes, weights, np.zeros((1, 2, 4), np.float32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 2 and all(f"x{dtype}>, tensor" in line for line in products)
    assert all("precision = [HIGH" in line for line in products) == (dtype == "f32")


@pytest.mark.parametrize("lowest", [0.0, -0.05], ids=["positive", "signed"])
@pytest.mark.parametrize("platform, most", [("gpu", 0.05), ("tpu", 0.001)])
def test_platforms_give_the_same_images(platform, most, lowest, monkeypatch):
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (4, 50, 3, 60), np.uint8)
    across, down = (
        rng.random((4, n, m)).astype(np.float32) ** 8 + np.float32(lowest)
        for n, m in ((30, 60), (20, 50))
    )
    arrays = planes, across / across.sum(-1, keepdims=True), down / down.sum(-1, keepdims=True)
    newly_compiled = lambda: jax.jit(lambda *x: resampling.resample(*x))(*arrays)  # noqa: E731
    expected = newly_compiled().astype(int)
    monkeypatch.setitem(platforms._NAMES, "cpu", platform)
    got = newly_compiled()
    assert got.dtype == np.uint8
    difference = np.abs(np.asarray(got, int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() <= most
    assert (difference > 0).any() or platform != "gpu"  # float16 weights


def test_rounding_equals_pillow():
    pixels = np.array([-3.0, 0.49, 0.5, 254.5, 254.49, 300.0], np.float32)
    assert resampling.nearest_level(pixels).tolist() == [0, 0, 1, 255, 254, 255]
