"""Attention of vision transformers; the implementation for each platform is chosen here.

On CPUs, in float32 and float64, it is a loop over the heads, whose T x T weights stay in the cache.
Elsewhere it is XLA's. cuDNN's is not used: JAX 0.10 refuses its gradient for odd numbers of tokens,
and a class token makes the number odd as a rule.
"""

import jax
import jax.numpy as jnp

from moco_jax.parallel.platforms import by_platform


@jax.custom_vjp
def attention(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Returns softmax(q k / sqrt(d)) v of queries, keys and values [B, T, H, d]: [B, T, H, d].

    The softmax is computed in float32 or wider. Only the arguments and the result are kept for the
    gradient. XLA computes the weights again, or keeps them where it finds that they are computed
    twice.
    """
    return by_platform(queries, keys, values, default=_plain, cpu=_cpu)


def _forward(q, k, v):
    y = attention(q, k, v)
    return y, (q, k, v, y)


def _backward(saved, gradient):
    def derived(q, k, v, y, g):
        return jax.vjp(_plain, q, k, v)[1](g)

    cpu = _by_head_gradient if _fits_cpu(gradient) else derived
    return by_platform(*saved, gradient, default=derived, cpu=cpu)


attention.defvjp(_forward, _backward)


def _plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _fits_cpu(x: jax.Array) -> bool:
    return x.dtype in (jnp.float32, jnp.float64)  # bfloat16 products are slow on CPUs


def _cpu(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return _by_head(q, k, v) if _fits_cpu(q) else _plain(q, k, v)


def _by_head(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    def one(head):
        q, k, v = head
        weights, sums = _weights(q, k)
        return jnp.einsum("bqk,bkd->bqd", weights, v) / sums

    return _heads_third(jax.lax.map(one, tuple(map(_heads_first, (q, k, v)))))


def _by_head_gradient(q, k, v, y, gradient):
    scale = q.shape[-1] ** -0.5

    def one(head):
        q, k, v, y, g = head
        weights, sums = _weights(q, k)
        g = g / sums  # instead of the weights, which are T times as many
        by_v = jnp.einsum("bqk,bqd->bkd", weights, g)
        by_weights = jnp.einsum("bqd,bkd->bqk", g, v)
        by_scores = weights * (by_weights - (g * y).sum(axis=-1, keepdims=True))
        by_q = jnp.einsum("bqk,bkd->bqd", by_scores, k) * scale
        by_k = jnp.einsum("bqk,bqd->bkd", by_scores, q) * scale
        return by_q, by_k, by_v

    found = jax.lax.map(one, tuple(map(_heads_first, (q, k, v, y, gradient))))
    return tuple(map(_heads_third, found))


def _weights(q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the weights of a head before they are divided by their sums, and the sums."""
    scores = jnp.einsum("bqd,bkd->bqk", q * q.shape[-1] ** -0.5, k)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights, weights.sum(axis=-1, keepdims=True)


def _heads_first(x: jax.Array) -> jax.Array:
    return x.transpose(2, 0, 1, 3)


def _heads_third(x: jax.Array) -> jax.Array:
    return x.transpose(1, 2, 0, 3)
