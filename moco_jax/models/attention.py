"""Attention of vision transformers. The implementation for each platform is chosen here."""

import jax
import jax.numpy as jnp


def attention(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Returns softmax(q k / sqrt(d)) v of queries, keys and values [B, T, H, d]: [B, T, H, d].

    The softmax is computed in float32 or wider.
    """
    if queries.dtype == jnp.float64:  # dot_product_attention computes every softmax in float32
        scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys) * queries.shape[-1] ** -0.5
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), values)
    return jax.nn.dot_product_attention(queries, keys, values, implementation="xla")
