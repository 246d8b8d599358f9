"""The product of levels and weights, as each kind of device computes it, against float64."""

import jax
import numpy as np
import pytest

from moco_jax.data import levels

WAYS = [(levels.in_float32, 0.001), (levels.in_two_bfloat16, 0.01), (levels.in_float16, 0.07)]


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


@pytest.mark.parametrize("platform, dtype", [("cpu", "f32"), ("cuda", "f16"), ("tpu", "bf16")])
def test_each_kind_of_device_multiplies_what_it_is_fast_at(platform, dtype):
    pixels, one = np.zeros((1, 4, 3), np.uint8), np.ones((1, 1, 3), np.float32)
    traced = jax.jit(levels.weigh, static_argnums=0).trace("bpw,bxw->bpx", pixels, one)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == (2 if platform == "tpu" else 1)
    assert all(f"x{dtype}>, tensor" in line for line in products)


def test_rounding_and_cutting_are_pillows():
    pixels = np.array([-3.0, 0.49, 0.5, 254.5, 254.49, 300.0], np.float32)
    assert levels.round_to_level(pixels).tolist() == [0, 0, 1, 255, 254, 255]
    assert levels.cut_to_level(pixels).tolist() == [0, 0, 0, 254, 254, 255]
