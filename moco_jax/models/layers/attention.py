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
def attention(qkv: jax.Array) -> jax.Array:
    """Returns softmax(q k / sqrt(d)) v of queries, keys and values [B, T, 3, H, d]: [B, T, H * d].

    The softmax is computed in float32 or wider. Only the argument and the result are kept for the
    gradient. XLA computes the weights again, or keeps them where it finds that they are computed
    twice.
    """
    cpu = _by_head if _fits_cpu(qkv) else None
    cuda = _cudnn if _fits_cudnn(qkv) else None
    return by_platform(qkv, default=_plain, cpu=cpu, cuda=cuda)


def _forward(qkv):
    y = attention(qkv)
    return y, (qkv, y)


def _backward(saved, gradient):
    def derived(implementation, qkv, y, g):
        return jax.vjp(implementation, qkv)[1](g)[0]

    default = functools.partial(derived, _plain)
    cpu = _by_head_gradient if _fits_cpu(gradient) else None
    cuda = functools.partial(derived, _cudnn) if _fits_cudnn(saved[0]) else None
    return (by_platform(*saved, gradient, default=default, cpu=cpu, cuda=cuda),)


attention.defvjp(_forward, _backward)


def _plain(qkv: jax.Array) -> jax.Array:
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    return y.reshape(*y.shape[:2], -1)


def _fits_cudnn(x: jax.Array) -> bool:
    fits = x.dtype in (jnp.bfloat16, jnp.float16) and x.shape[-1] % 8 == 0 and x.shape[-1] <= 128
    return fits and _has_cudnn()


@functools.cache
def _has_cudnn() -> bool:
    """Returns whether JAX finds cuDNN, and no GPU that cuDNN computes no attention on."""
    capability = str(getattr(jax.devices()[0], "compute_capability", "8.0"))
    if capability.startswith("gfx") or float(capability) < 8.0:  # a GPU of AMD, or an old one
        return False
    x = jax.ShapeDtypeStruct((1, 2, 3, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(_cudnn, x)
    except (RuntimeError, NotImplementedError):  # cuDNN is absent or too old
        return False
    return True


def _cudnn(qkv: jax.Array) -> jax.Array:
    q, k, v = jnp.moveaxis(qkv, 2, 0)
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
    return y[:, :tokens].reshape(len(q), tokens, -1)


def _fits_cpu(x: jax.Array) -> bool:
    # bfloat16 products are slow on CPUs.
    return x.dtype in (jnp.float32, jnp.float64) and not uses_lax_only()


def _by_head(qkv: jax.Array) -> jax.Array:
    batch, tokens, _, heads, size = qkv.shape
    columns = qkv.reshape(batch, tokens, -1)

    def one(head, y):
        q, k, v = (_columns(columns, part * heads + head, size) for part in range(3))
        weights, sums = _weights(q, k)
        return _with_columns(y, head, jnp.einsum("bqk,bkd->bqd", weights, v) / sums)

    y = jnp.zeros((batch, tokens, heads * size), qkv.dtype)
    return jax.lax.fori_loop(0, heads, one, y)


def _by_head_gradient(qkv: jax.Array, y: jax.Array, gradient: jax.Array) -> jax.Array:
    batch, tokens, _, heads, size = qkv.shape
    columns = qkv.reshape(batch, tokens, -1)
    scale = size**-0.5

    def one(head, found):
        q, k, v = (_columns(columns, part * heads + head, size) for part in range(3))
        of_y, g = (_columns(x, head, size) for x in (y, gradient))
        weights, sums = _weights(q, k)
        g = g / sums  # instead of the weights, which are T times as many
        by_v = jnp.einsum("bqk,bqd->bkd", weights, g)
        by_weights = jnp.einsum("bqd,bkd->bqk", g, v)
        by_scores = weights * (by_weights - (g * of_y).sum(axis=-1, keepdims=True))
        by_q = jnp.einsum("bqk,bkd->bqd", by_scores, k) * scale
        by_k = jnp.einsum("bqk,bqd->bkd", by_scores, q) * scale
        for part, derivative in enumerate((by_q, by_k, by_v)):
            found = _with_columns(found, part * heads + head, derivative)
        return found

    found = jax.lax.fori_loop(0, heads, one, jnp.zeros_like(columns))
    return found.reshape(qkv.shape)


def _weights(q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the weights of a head before they are divided by their sums, and the sums."""
    scores = jnp.einsum("bqd,bkd->bqk", q * q.shape[-1] ** -0.5, k)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights, weights.sum(axis=-1, keepdims=True)


def _columns(x: jax.Array, index: jax.Array | int, size: int) -> jax.Array:
    """Returns the block of `size` columns with this index of x [B, T, columns]."""
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=2)


def _with_columns(x: jax.Array, index: jax.Array | int, block: jax.Array) -> jax.Array:
    """Returns x [B, T, columns] with another block of columns [B, T, size] at this index."""
    return jax.lax.dynamic_update_slice_in_dim(x, block, index * block.shape[2], axis=2)
