import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models.layers.pooling import max_pool


def _lax(x):
    return nn.max_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])  # pyright: ignore[reportArgumentType]


def _gradient(function, x):
    y, backward = jax.vjp(function, x)
    return backward(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))[0]


@pytest.mark.parametrize("height, width", [(8, 6), (7, 6), (8, 5), (1, 2)])
def test_pooling_and_its_gradient_equal_those_of_lax(height, width):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    np.testing.assert_array_equal(max_pool(x), _lax(x))
    np.testing.assert_allclose(_gradient(max_pool, x), _gradient(_lax, x), atol=1e-6)


def test_the_first_of_equal_maxima_gets_the_gradient():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, :2].set(1.0)
    np.testing.assert_array_equal(_gradient(max_pool, x), _gradient(_lax, x))


def test_the_gradient_is_correct_when_fused_with_the_layer_before():
    # In one program, XLA may compute both sides of a comparison again, with different rounding.
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 3))

    def pooled(pool, x):
        x = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return pool(jax.nn.relu(x * 1.2345 + 0.4321))

    x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    own, expected = (
        jax.jit(lambda x, pool=pool: _gradient(lambda x: pooled(pool, x), x))(x)
        for pool in (max_pool, _lax)
    )
    np.testing.assert_allclose(own, expected, atol=1e-5)


def test_nans_are_kept():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0].set(jnp.nan)
    y, backward = jax.vjp(max_pool, x)
    assert jnp.isnan(y[0, 0, 0, 0]) and jnp.isnan(max_pool(x)[0, 0, 0, 0])
    assert backward(jnp.ones_like(y))[0].sum() == 4


@pytest.mark.parametrize("platform", ["cuda", "cpu", "tpu"])
def test_only_tpus_scatter(platform):
    traced = jax.jit(lambda x: _gradient(max_pool, x)).trace(jnp.zeros((2, 8, 8, 3)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("select_and_scatter" in text) == (platform == "tpu")
