import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.models.layers.relu import relu


def test_relu_and_its_gradient_equal_those_of_jax():
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0])
    results = []
    for function in (relu, jax.nn.relu):
        y, backward = jax.vjp(function, x)
        results.append((y, *backward(jnp.arange(1.0, 6.0))))
    np.testing.assert_array_equal(*results)
