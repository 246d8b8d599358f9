"""Projection heads, initialised as in the reference: by torch's default."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


class LinearHead(nn.Module):
    """MoCo v1's head: one linear layer. Maps f32[B, F] to f32[B, dim]."""

    dim: int
    hidden: int = 0  # not used; all heads take the same arguments
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _linear(x, self.dim, self.dtype, "output")


class MLPHead(nn.Module):
    """MoCo v2's head: linear, ReLU, linear, without batch norm. Maps f32[B, F] to f32[B, dim]."""

    dim: int
    hidden: int = 0  # length of the hidden layer; 0: the length of the input, as in the reference
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(_linear(x, self.hidden or x.shape[-1], self.dtype, "hidden_layer"))
        return _linear(x, self.dim, self.dtype, "output")


def _linear(x: jax.Array, features: int, dtype, name: str) -> jax.Array:
    bound = 1 / math.sqrt(x.shape[-1])  # torch's default for the kernel and the bias

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, dtype=dtype, kernel_init=init, bias_init=init, name=name)(x)


# The values of `config.model.head`; a new head is registered here.
HEADS = {"linear": LinearHead, "mlp": MLPHead}
