"""The max-pooling of a ResNet's stem."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moco_jax.parallel.platforms import by_platform


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Returns x [B, H, W, C] pooled by 3x3 windows at stride 2, padded by 1: [B, H/2, W/2, C].

    Halves are rounded up.

    For the gradient XLA scatters on GPUs, where sums then come in any order, and on CPUs runs on
    one thread. There, a byte for each window is kept that says where its maximum is, the first one
    if there are several, and each image's pixel asks the windows that it is in. TPUs have an
    instruction for it.
    """
    return _lax_max_pool(x)


def _lax_max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])  # pyright: ignore[reportArgumentType]


def _forward(x):
    def by_lax(x):
        y = _lax_max_pool(x)
        return y, jnp.zeros(y.shape, jnp.uint8)

    y, places = by_platform(x, default=by_lax, cpu=_with_places, gpu=_with_places)
    return y, (x, places)


def _backward(saved, gradient):
    def by_lax(x, places, gradient):
        return jax.vjp(_lax_max_pool, x)[1](gradient)[0]

    return (by_platform(*saved, gradient, default=by_lax, cpu=_gathered, gpu=_gathered),)


max_pool.defvjp(_forward, _backward)


def _with_places(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the maxima [B, h, w, C] and uint8 of that shape, 3 * row + column in the window."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    height, width = ((size + 1) // 2 for size in x.shape[1:3])
    y, places = padded[:, : 2 * height - 1 : 2, : 2 * width - 1 : 2], jnp.uint8(0)
    for place in range(1, 9):
        i, j = divmod(place, 3)
        other = padded[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
        # Which one is larger is asked of both here: compared with a result, it might be computed
        # anew in another way, and be none of the two.
        places = jnp.where((other > y) | jnp.isnan(other), jnp.uint8(place), places)
        y = jnp.maximum(y, other)
    return y, places


def _gathered(x: jax.Array, places: jax.Array, gradient: jax.Array) -> jax.Array:
    """Returns the gradient by x: of each window that has its maximum there."""
    height, width = x.shape[1:3]
    places, gradient = _twice(places), _twice(gradient)
    rows, columns = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]
    total = jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    # Row r is row 1 or 2 of window r // 2 and, if it is odd, row 0 of the one after that.
    for down in (0, 1):
        for across in (0, 1):
            here = (slice(None), slice(down, down + height), slice(across, across + width))
            row, column = 0 if down else 1 + rows % 2, 0 if across else 1 + columns % 2
            inside = (rows % 2 >= down) & (columns % 2 >= across)
            total += jnp.where(inside & (places[here] == 3 * row + column), gradient[here], 0)
    return total.astype(x.dtype)


def _twice(windows: jax.Array) -> jax.Array:
    """Returns [B, 2 * h + 2, 2 * w + 2, C] of [B, h, w, C], each window twice, and zeros."""
    padded = jnp.pad(windows, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return padded.repeat(2, axis=1).repeat(2, axis=2)
