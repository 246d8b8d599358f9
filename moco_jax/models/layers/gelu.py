"""The exact GELU (Hendrycks and Gimpel 2016)."""

import math

import jax
import jax.numpy as jnp


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Returns x times the normal distribution function of x, computed in float32 or wider.

    `jax.nn.gelu` computes it by erfc, which takes three times as long on a CPU as erf, by which
    torch computes it. Only x is kept for the gradient.
    """
    wide = _wide(x)
    return (wide * _below(wide)).astype(x.dtype)


def _forward(x):
    return gelu(x), x


def _backward(x, gradient):
    wide = _wide(x)
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return ((gradient * (_below(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(_forward, _backward)


def _below(x: jax.Array) -> jax.Array:
    """Returns the probability that a standard normal variable is below x."""
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
