"""ReLU whose gradient reads the result instead of the input."""

import jax
import jax.numpy as jnp

from moco_jax.parallel.platforms import materialized


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """Returns max(x, 0).

    `jax.nn.relu` computes the mask of its gradient from the input. In a residual network nothing
    else needs that input, a sum; the result is in memory anyway, for the convolution that follows.
    """
    return jnp.maximum(x, 0)


def _forward(x):
    y = jnp.maximum(x, 0)
    return y, y


def _backward(y, gradient):
    return (jnp.where(materialized(y) > 0, gradient, 0),)


relu.defvjp(_forward, _backward)
