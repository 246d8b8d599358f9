"""The product of levels and weights, as each kind of device computes it, against float64."""

import jax
import numpy as np
import pytest
from jax import lax

from moco_jax.data.augment import resampling as levels
from moco_jax.parallel import platforms


def in_three_products(equation, pixels, weights):
    """What a TPU does with `Precision.HIGH`; the third product is of the levels' low part, 0."""
    high = lax.reduce_precision(weights, exponent_bits=8, mantissa_bits=7)
    low = lax.reduce_precision(weights - high, exponent_bits=8, mantissa_bits=7)
    return levels.in_float32(equation, pixels, high) + levels.in_float32(equation, pixels, low)


WAYS = [(levels.in_float32, 0.001), (in_three_products, 0.01), (levels.in_float16, 0.07)]


@pytest.mark.parametrize("weigh, bound", WAYS)
def test_weighing_is_exact_to_a_part_of_a_level(weigh, bound):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 4, 3, 60), np.uint8)
    weights = rng.random((2, 7, 60)).astype(np.float32)
    weights /= weights.sum(-1, keepdims=True)
    got = jax.jit(weigh, static_argnums=0)("bhcw,bxw->bhcx", pixels, weights)
    expected = np.einsum("bhcw,bxw->bhcx", pixels.astype(float), weights.astype(float))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=bound)


@pytest.mark.parametrize("weigh", [way for way, _ in WAYS])
def test_a_weight_of_one_is_exact(weigh):
    pixels = np.arange(256, dtype=np.uint8)[None, :, None]
    one = np.ones((1, 1, 1), np.float32)
    got = jax.jit(weigh, static_argnums=0)("bpw,bxw->bpx", pixels, one)
    np.testing.assert_array_equal(got, pixels.astype(np.float32))


@pytest.mark.parametrize("platform, dtype", [("cpu", "f32"), ("tpu", "f32"), ("cuda", "f16")])
def test_each_kind_of_device_multiplies_what_it_is_fast_at(platform, dtype):
    planes, weights = np.zeros((1, 4, 3, 5), np.uint8), np.zeros((1, 2, 5), np.float32)
    traced = jax.jit(levels.resample).trace(planes, weights, np.zeros((1, 2, 4), np.float32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 2 and all(f"x{dtype}>, tensor" in line for line in products)
    assert all("precision = [HIGH" in line for line in products) == (dtype == "f32")


@pytest.mark.parametrize("way, most", [("gpu", 0.05), ("tpu", 0.001)])
def test_other_ways_give_the_same_images(way, most, monkeypatch):
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (4, 50, 3, 60), np.uint8)
    across, down = (rng.random((4, n, m)).astype(np.float32) ** 8 for n, m in ((30, 60), (20, 50)))
    arrays = planes, across / across.sum(-1, keepdims=True), down / down.sum(-1, keepdims=True)
    compiled_anew = lambda: jax.jit(lambda *x: levels.resample(*x))(*arrays)  # noqa: E731
    expected = compiled_anew().astype(int)
    monkeypatch.setitem(platforms._NAMES, "cpu", way)
    got = compiled_anew()
    assert got.dtype == np.uint8
    difference = np.abs(np.asarray(got, int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() <= most
    assert (difference > 0).any() or way != "gpu"  # whose weights are cut


def test_rounding_is_pillows():
    pixels = np.array([-3.0, 0.49, 0.5, 254.5, 254.49, 300.0], np.float32)
    assert levels.nearest_level(pixels).tolist() == [0, 0, 1, 255, 254, 255]
