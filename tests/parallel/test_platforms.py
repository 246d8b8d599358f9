import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.parallel.platforms import by_platform, materialized


def _choose(x):
    return by_platform(
        x, default=lambda x: {"a": x, "b": jnp.sin(x)}, cpu=lambda x: {"a": x, "b": jnp.cos(x)}
    )


@pytest.mark.parametrize("function", [_choose, jax.jit(_choose)])
def test_a_cpu_computes_the_cpu_function(function):
    got = function(jnp.arange(3.0))
    np.testing.assert_array_equal(got["a"], jnp.arange(3.0))
    np.testing.assert_array_equal(got["b"], jnp.cos(jnp.arange(3.0)))


@pytest.mark.parametrize("platform, found", [("cpu", "cosine"), ("tpu", "sine"), ("cuda", "sine")])
def test_a_program_contains_only_the_function_for_its_platform(platform, found):
    text = jax.jit(_choose).trace(jnp.arange(3.0)).lower(lowering_platforms=(platform,)).as_text()
    assert {word for word in ("sine", "cosine") if f"stablehlo.{word}" in text} == {found}
    assert "case" not in text and "if" not in text


@pytest.mark.parametrize(
    ("platform", "found"), [("cpu", "sine"), ("cuda", "cosine"), ("rocm", "tanh")]
)
def test_cuda_may_have_a_function_of_its_own_among_the_gpus(platform, found):
    def choose(x):
        return by_platform(x, default=jnp.sin, cuda=jnp.cos, gpu=jnp.tanh)

    text = jax.jit(choose).trace(jnp.arange(3.0)).lower(lowering_platforms=(platform,)).as_text()
    assert [word for word in ("cosine", "sine", "tanh") if f"stablehlo.{word}" in text] == [found]


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "rocm"])
def test_only_gpus_get_an_optimization_barrier(platform):
    traced = jax.jit(lambda x: materialized((x + 1, x * 2))).trace(jnp.arange(3.0))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == (platform in ("cuda", "rocm"))
    np.testing.assert_array_equal(materialized((jnp.ones(2), jnp.zeros(2))), ([1, 1], [0, 0]))
