import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from moco_jax.models.layers import convolution

# (height, kernel, stride, channels in and out): each implementation, at even and odd sizes.
CASES = [
    (8, 1, 1, 4, 6),
    (8, 1, 2, 4, 6),
    (7, 1, 2, 4, 6),
    (8, 3, 1, 4, 6),
    (8, 3, 2, 4, 6),
    (7, 3, 2, 4, 6),
    (8, 7, 2, 3, 4),
]


def _lax(x, w, stride):
    pad = w.shape[0] // 2
    return lax.conv_general_dilated(
        x, w, (stride,) * 2, ((pad, pad),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _own(x, w, stride):
    pad = w.shape[0] // 2
    numbers = lax.conv_dimension_numbers(x.shape, w.shape, ("NHWC", "HWIO", "NHWC"))
    return convolution.conv_general_dilated(
        x, w, (stride,) * 2, ((pad, pad),) * 2, dimension_numbers=numbers
    )


def _problem(height, kernel, stride, channels, features):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, height, height + 2, channels))
    w = jax.random.normal(keys[1], (kernel, kernel, channels, features))
    return x, w, stride


def _with_gradients(conv, x, w, stride):
    """Returns the result and the gradients for an arbitrary cotangent."""
    y, backward = jax.vjp(lambda x, w: conv(x, w, stride), x, w)
    return y, *backward(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


@pytest.mark.parametrize("case", CASES)
def test_result_and_gradients_equal_those_of_lax(case):
    problem = _problem(*case)
    for own, expected in zip(
        _with_gradients(_own, *problem), _with_gradients(_lax, *problem), strict=True
    ):
        np.testing.assert_allclose(own, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("height", [8, 7])
def test_winograd_equals_the_convolution_of_lax(height, monkeypatch):
    monkeypatch.setattr(convolution, "_LARGE", 0)
    problem = _problem(height, 3, 1, 64, 80)
    text = jax.jit(_own, static_argnums=2).lower(*problem).as_text()
    assert text.count("dot_general") >= 16 and "stablehlo.convolution" not in text
    for own, expected in zip(
        _with_gradients(_own, *problem), _with_gradients(_lax, *problem), strict=True
    ):
        np.testing.assert_allclose(own, expected, atol=5e-6 * np.abs(expected).max())


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("case", CASES)
def test_accelerators_have_the_operations_of_lax(platform, case, monkeypatch):
    monkeypatch.setattr(convolution, "_LARGE", 0)
    monkeypatch.setattr(convolution, "_WIDE", 0)
    x, w, stride = _problem(*case)

    def operations(conv):
        traced = jax.jit(lambda x, w: _with_gradients(conv, x, w, stride)).trace(x, w)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        words = [word for line in text.splitlines() for word in line.split()]
        return sorted(word for word in words if word.startswith("stablehlo."))

    assert operations(_own) == operations(_lax)


def test_lax_only_keeps_the_convolutions_of_lax_on_a_cpu():
    x, w, _ = _problem(8, 1, 1, 4, 6)
    assert "convolution(" not in jax.jit(lambda x, w: _own(x, w, 1)).lower(x, w).as_text()
    with convolution.lax_only():
        text = jax.jit(lambda x, w: _own(x, w, 1)).lower(x, w).as_text()
    assert "convolution(" in text
