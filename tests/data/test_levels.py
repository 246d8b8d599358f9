"""The two-part product, which accelerators take, against float64."""

import jax
import numpy as np
import pytest

from moco_jax.data import levels


@pytest.mark.parametrize("weigh", [levels.weigh, levels.weigh_in_two_parts])
def test_weighing_is_exact_to_a_hundredth_of_a_level(weigh):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 4, 3, 60), np.uint8)
    weights = rng.random((2, 7, 60)).astype(np.float32)
    weights /= weights.sum(-1, keepdims=True)
    got = jax.jit(weigh, static_argnums=0)("bhcw,bxw->bhcx", pixels, weights)
    expected = np.einsum("bhcw,bxw->bhcx", pixels.astype(float), weights.astype(float))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=0.01)


def test_a_weight_of_one_is_exact():
    pixels = np.arange(256, dtype=np.uint8)[None, :, None]
    one = np.ones((1, 1, 1), np.float32)
    got = jax.jit(levels.weigh_in_two_parts, static_argnums=0)("bpw,bxw->bpx", pixels, one)
    np.testing.assert_array_equal(got, pixels.astype(np.float32))


def test_rounding_and_cutting_are_pillows():
    pixels = np.array([-3.0, 0.49, 0.5, 254.5, 254.49, 300.0], np.float32)
    assert levels.round_to_level(pixels).tolist() == [0, 0, 1, 255, 254, 255]
    assert levels.cut_to_level(pixels).tolist() == [0, 0, 0, 254, 254, 255]
