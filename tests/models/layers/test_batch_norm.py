import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.models.layers.batch_norm import GroupedBatchNorm


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(3, 2, (8, 2, 2, 5)).astype(np.float32)


def test_each_group_is_normalised_by_its_own_statistics(x):
    norm = GroupedBatchNorm(groups=4)
    variables = norm.init(jax.random.key(0), x)
    y, changed = norm.apply(variables, x, mutable=["batch_stats"])

    for group in range(4):
        part = x[2 * group : 2 * group + 2].astype(np.float64)
        expected = (part - part.mean((0, 1, 2))) / np.sqrt(part.var((0, 1, 2)) + 1e-5)
        np.testing.assert_allclose(y[2 * group : 2 * group + 2], expected, atol=1e-4)

    parts = x.reshape(4, -1, 5).astype(np.float64)
    # torch's running statistics: momentum .1, and the unbiased variance (8 values a group).
    np.testing.assert_allclose(
        changed["batch_stats"]["mean"], 0.1 * parts.mean(1).mean(0), atol=1e-5
    )
    np.testing.assert_allclose(
        changed["batch_stats"]["var"], 0.9 + 0.1 * parts.var(1, ddof=1).mean(0), rtol=1e-4
    )


def test_evaluation_uses_the_running_averages(x):
    variables = {
        "params": {"scale": np.full(5, 2.0, np.float32), "bias": np.full(5, 1.0, np.float32)},
        "batch_stats": {"mean": np.full(5, 3.0, np.float32), "var": np.full(5, 4.0, np.float32)},
    }
    y = GroupedBatchNorm(groups=4, use_running_average=True).apply(variables, x)
    np.testing.assert_allclose(y, 2 * (x - 3) / np.sqrt(4 + 1e-5) + 1, atol=1e-5)


def test_groups_that_do_not_divide_the_batch_raise(x):
    with pytest.raises(ValueError, match="bn_groups=3 must divide the batch of 8"):
        GroupedBatchNorm(groups=3).init(jax.random.key(0), x)


@pytest.mark.parametrize("rectify", [False, True])
def test_gradients_equal_those_that_jax_derives(x, rectify):
    params = {
        "scale": np.linspace(0.5, 2, 5, dtype=np.float32),
        "bias": np.linspace(-1, 1, 5, dtype=np.float32),
    }
    norm = GroupedBatchNorm(groups=2, rectify=rectify)
    stats = norm.init(jax.random.key(0), x)["batch_stats"]

    def own(params, x):
        return norm.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])[0]

    def written_out(params, x):
        parts = x.reshape(2, 4, 2, 2, 5)
        centred = parts - parts.mean((1, 2, 3), keepdims=True)
        std = jnp.sqrt(jnp.square(centred).mean((1, 2, 3), keepdims=True) + 1e-5)
        scale, bias = (params[name][None, None, None, None] for name in ("scale", "bias"))
        y = (centred / std * scale + bias).reshape(x.shape)
        return jnp.maximum(y, 0) if rectify else y

    results = []
    for function in (own, written_out):
        y, backward = jax.vjp(function, params, x)
        gradients = backward(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))
        results.append(jax.tree.leaves((y, gradients)))
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_evaluation_applies_the_relu(x):
    variables = GroupedBatchNorm().init(jax.random.key(0), x)
    plain, rectified = (
        GroupedBatchNorm(use_running_average=True, rectify=rectify).apply(variables, x - 3)
        for rectify in (False, True)
    )
    np.testing.assert_array_equal(rectified, np.maximum(plain, 0))


@pytest.mark.parametrize("rectify", [False, True])
def test_bfloat16_is_rounded_once(x, rectify):
    """The bfloat16 gradient equals that of the same values in float32, to half its last bit."""
    norms = [GroupedBatchNorm(2, dtype=d, rectify=rectify) for d in (jnp.bfloat16, jnp.float32)]
    variables = norms[0].init(jax.random.key(0), x)
    by_y = jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape).astype(jnp.bfloat16)

    def gradient(norm):
        apply = lambda x: norm.apply(variables, x, mutable=["batch_stats"])[0]  # noqa: E731
        inputs = jnp.asarray(x, jnp.bfloat16).astype(norm.dtype)
        return jax.vjp(apply, inputs)[1](by_y.astype(norm.dtype))[0]

    half, whole = gradient(norms[0]), gradient(norms[1])
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), whole, rtol=2**-8, atol=1e-6)
