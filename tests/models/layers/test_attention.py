"""Attention, GELU and products against formulas written out, with their gradients."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models.layers import attention as attention_file
from moco_jax.models.layers import convolution
from moco_jax.models.layers.attention import attention
from moco_jax.models.layers.gelu import gelu
from moco_jax.models.layers.product import product
from moco_jax.parallel.mesh import make_layout

SHAPE = (8, 7, 3, 4, 8)  # B, T, 3, H, d


@pytest.fixture
def arrays():
    """Returns queries, keys and values in one array, and the gradient of the result."""
    random = np.random.default_rng(0)
    return 3 * random.normal(size=SHAPE), 3 * random.normal(size=(8, 7, 32))


def forward(qkv):
    q, k, v = np.moveaxis(qkv, 2, 0)
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    return y.reshape(*y.shape[:2], -1)


def differences(function, x, gradient):
    """Returns the gradient by x at some places, from central differences."""
    found = []
    for token, head in [((0, 0), (0, 0)), ((3, 2), (1, 4)), ((7, 6), (3, 7))]:
        for part in range(3):
            place, moved = (*token, part, *head), []
            for step in (1e-5, -1e-5):
                changed = x.copy()
                changed[place] += step
                moved.append((function(changed) * gradient).sum())
            found.append((place, (moved[0] - moved[1]) / 2e-5))
    return found


@pytest.mark.parametrize("function", [attention, attention_file._plain])
def test_attention_and_its_gradient_in_float64(arrays, function):
    qkv, gradient = arrays
    with jax.enable_x64(True):
        y, back = jax.vjp(jax.jit(function), jnp.asarray(qkv))
        (found,) = back(jnp.asarray(gradient))
    np.testing.assert_allclose(y, forward(qkv), rtol=1e-10, atol=1e-12)
    for place, expected in differences(forward, qkv, gradient):
        assert float(found[place]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_large_scores_do_not_overflow(arrays):
    qkv = np.float32(100 * arrays[0])
    np.testing.assert_allclose(attention(qkv), forward(qkv), rtol=1e-3, atol=1e-3)


def test_bfloat16_has_a_float32_softmax(arrays):
    qkv, gradient = (jnp.asarray(x, jnp.bfloat16) for x in arrays)
    y, back = jax.vjp(jax.jit(attention), qkv)
    assert y.dtype == back(gradient)[0].dtype == jnp.bfloat16
    exact = forward(np.asarray(qkv, np.float64))
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, atol=0.06)


def test_eight_devices_compute_what_one_does_without_moving_the_batch(arrays):
    layout = make_layout(jax.devices()[:8])
    arrays = [np.float32(x) for x in arrays]
    back = jax.jit(lambda qkv, g: jax.vjp(attention, qkv)[1](g))
    split = layout.put_batch(arrays)
    for found, expected in zip(back(*split), back(*arrays), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert "all-" not in back.lower(*split).compile().as_text()


def test_gelu_and_its_gradient_in_float64():
    x = np.linspace(-6, 6, 101)
    with jax.enable_x64(True):
        y, back = jax.vjp(gelu, jnp.asarray(x))
        (gradient,) = back(jnp.ones(101))
    below = np.array([(1 + math.erf(value / math.sqrt(2))) / 2 for value in x])
    np.testing.assert_allclose(y, x * below, rtol=1e-10, atol=1e-15)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(gradient, below + x * density, rtol=1e-10, atol=1e-15)


def test_gelu_of_bfloat16_is_rounded_once():
    x = jnp.linspace(-4, 4, 101, dtype=jnp.bfloat16)
    expected = jnp.asarray(gelu(x.astype(jnp.float32)), jnp.bfloat16)
    np.testing.assert_array_equal(gelu(x), expected)


@pytest.mark.parametrize("shape", [(5, 3, 4), (15, 4)])
def test_a_product_and_its_gradients_in_float64(shape):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=shape), random.normal(size=(4, 6))
    gradient = random.normal(size=(*shape[:-1], 6))
    with jax.enable_x64(True):
        y, back = jax.vjp(jax.jit(product), jnp.asarray(x), jnp.asarray(kernel))
        by_x, by_kernel = back(jnp.asarray(gradient))
    np.testing.assert_allclose(y, x @ kernel, rtol=1e-12)
    np.testing.assert_allclose(by_x, gradient @ kernel.T, rtol=1e-12, atol=1e-14)
    expected = np.einsum("rd,rn->dn", x.reshape(-1, 4), gradient.reshape(-1, 6))
    np.testing.assert_allclose(by_kernel, expected, rtol=1e-12, atol=1e-14)


def test_a_cpu_copies_no_tokens_for_the_gradient_of_a_product():
    x, kernel = jnp.zeros((16, 7, 32)), jnp.zeros((32, 64))
    step = make_layout(jax.devices()[:1]).jit(lambda x, w, g: jax.vjp(product, x, w)[1](g))
    text = step.lower(x, kernel, jnp.zeros((16, 7, 64))).compile().as_text()
    assert " dot(" in text and "[64,112]" not in text and "[32,112]" not in text


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [16, 17])
def test_a_gpu_computes_it_with_cudnn(tokens):
    shapes = [(2, tokens, 3, 3, 32), (2, tokens, 96)]
    arrays = [jax.random.normal(jax.random.key(0), shape, jnp.bfloat16) for shape in shapes]

    def with_gradients(function):
        def run(qkv, gradient):
            y, backward = jax.vjp(function, qkv)
            return y, *backward(gradient)

        return jax.jit(run)

    step = with_gradients(attention).lower(*arrays).compile()
    assert "fmhaSoftmaxBackward" in step.as_text()
    plain = with_gradients(attention_file._plain)(*arrays)
    for found, expected in zip(step(*arrays), plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("capability", ["gfx942", "7.5"])
def test_a_gpu_of_amd_and_an_old_one_have_no_cudnn(monkeypatch, capability):
    gpu = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(attention_file.jax, "devices", lambda: [gpu])
    monkeypatch.setattr(attention_file.jax, "eval_shape", lambda *_: None)  # a cuDNN is found
    assert not attention_file._has_cudnn.__wrapped__()


def test_cudnn_is_used_for_short_types_and_heads_that_it_knows(monkeypatch):
    monkeypatch.setattr(attention_file, "_has_cudnn", lambda: True)
    fits = lambda dtype, length: attention_file._fits_cudnn(jnp.zeros((1, 2, 1, length), dtype))  # noqa: E731
    assert fits(jnp.bfloat16, 64) and fits(jnp.float16, 128)
    assert not fits(jnp.float32, 64) and not fits(jnp.bfloat16, 12)
    assert not fits(jnp.bfloat16, 136)


def test_lax_only_has_no_loop_over_the_heads_whose_operations_are_counted_once():
    x = jax.ShapeDtypeStruct((2, 16, 3, 4, 8), jnp.float32)

    def text():
        return jax.jit(jax.grad(lambda qkv: attention(qkv).sum())).lower(x).as_text()

    assert "while" in text()
    with convolution.lax_only():
        assert "while" not in text()
    assert "while" in text()
