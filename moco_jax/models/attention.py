"""Attention of vision transformers. The implementation for each platform is chosen here."""

import jax


def attention(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Returns softmax(q k / sqrt(d)) v of queries, keys and values [B, T, H, d]: [B, T, H, d].

    The softmax is computed in float32 or wider.
    """
    return jax.nn.dot_product_attention(queries, keys, values, implementation="xla")
