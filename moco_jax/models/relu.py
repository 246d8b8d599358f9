"""The rectifier, with a gradient that reads its result."""

import jax
import jax.numpy as jnp

from moco_jax.parallel.platforms import materialized


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """Returns max(x, 0).

    `jax.nn.relu` asks its input for the gradient's mask. In a residual network the input is a sum
    that is nowhere else needed, while the result lies in memory, for the convolution that follows.
    """
    return jnp.maximum(x, 0)


def _forward(x):
    y = jnp.maximum(x, 0)
    return y, y


def _backward(y, gradient):
    return (jnp.where(materialized(y) > 0, gradient, 0),)


relu.defvjp(_forward, _backward)
