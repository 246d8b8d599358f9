"""Attention of vision transformers; the implementation for each platform is chosen here.

On CPUs, in float32 and float64, it is a loop over the heads, whose T x T weights stay in the cache.
On NVIDIA GPUs, in bfloat16, it is cuDNN's, which writes no T x T weights. Elsewhere it is XLA's.
"""

import functools

import jax
import jax.numpy as jnp

from moco_jax.models.layers.convolution import uses_lax_only
from moco_jax.parallel.platforms import by_platform


@jax.custom_vjp
def attention(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Returns softmax(q k / sqrt(d)) v of queries, keys and values [B, T, H, d]: [B, T, H, d].

    The softmax is computed in float32 or wider. Only the arguments and the result are kept for the
    gradient. XLA computes the weights again, or keeps them where it finds that they are computed
    twice.
    """
    cpu = _by_head if _fits_cpu(queries) else None
    cuda = _cudnn if _fits_cudnn(queries) else None
    return by_platform(queries, keys, values, default=_plain, cpu=cpu, cuda=cuda)


def _forward(q, k, v):
    y = attention(q, k, v)
    return y, (q, k, v, y)


def _backward(saved, gradient):
    def derived(implementation, q, k, v, y, g):
        return jax.vjp(implementation, q, k, v)[1](g)

    default = functools.partial(derived, _plain)
    cpu = _by_head_gradient if _fits_cpu(gradient) else None
    cuda = functools.partial(derived, _cudnn) if _fits_cudnn(gradient) else None
    return by_platform(*saved, gradient, default=default, cpu=cpu, cuda=cuda)


attention.defvjp(_forward, _backward)


def _plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _fits_cudnn(x: jax.Array) -> bool:
    fits = x.dtype in (jnp.bfloat16, jnp.float16) and x.shape[-1] % 8 == 0 and x.shape[-1] <= 128
    return fits and _has_cudnn()


@functools.cache
def _has_cudnn() -> bool:
    """Returns whether JAX finds cuDNN, and no GPU that cuDNN computes no attention on."""
    capability = str(getattr(jax.devices()[0], "compute_capability", "8.0"))
    if capability.startswith("gfx") or float(capability) < 8.0:  # a GPU of AMD, or an old one
        return False
    x = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(_cudnn, x, x, x)
    except (RuntimeError, NotImplementedError):  # cuDNN is absent or too old
        return False
    return True


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    # JAX 0.10 refuses the gradient for odd numbers of tokens, and a class token makes T odd.
    tokens, odd = q.shape[1], q.shape[1] % 2
    lengths = jnp.full(len(q), tokens, jnp.int32) if odd else None
    q, k, v = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (q, k, v))
    y = jax.nn.dot_product_attention(
        q,
        k,
        v,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return y[:, :tokens]


def _fits_cpu(x: jax.Array) -> bool:
    # bfloat16 products are slow on CPUs.
    return x.dtype in (jnp.float32, jnp.float64) and not uses_lax_only()


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
