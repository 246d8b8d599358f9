"""Projection heads, initialised as in the reference: by torch's default."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def torch_linear_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32, *, fan_in: int):
    """Returns samples of uniform(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's default initialiser."""
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class LinearHead(nn.Module):
    """MoCo v1's head: one linear layer. Maps f32[B, F] to f32[B, dim]."""

    dim: int
    hidden: int = 0  # not used; all heads take the same arguments
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _linear(x, self.dim, self.dtype, "output")


class MLPHead(nn.Module):
    """MoCo v2's head: linear, ReLU, linear, without batch norm. Maps f32[B, F] to f32[B, dim].

    Attributes:
      dim: length of the result.
      hidden: length of the hidden layer; 0: the length of the input, as in the reference.
    """

    dim: int
    hidden: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(_linear(x, self.hidden or x.shape[-1], self.dtype, "hidden_layer"))
        return _linear(x, self.dim, self.dtype, "output")


def _linear(x: jax.Array, features: int, dtype, name: str) -> jax.Array:
    init = functools.partial(torch_linear_init, fan_in=x.shape[-1])
    return nn.Dense(features, dtype=dtype, kernel_init=init, bias_init=init, name=name)(x)


# The values of `config.model.head`; a new head is registered here.
HEADS = {"linear": LinearHead, "mlp": MLPHead}
