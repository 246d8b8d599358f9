"""Max-pooling of the ResNet stem."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moco_jax.parallel.platforms import by_platform


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """Returns [B, ceil(H/2), ceil(W/2), C], the maxima of 3x3 windows at stride 2 and padding 1.

    XLA's gradient scatters on GPUs, where the order of the sums is then not deterministic, and
    uses one thread on CPUs. There, the forward pass stores a byte for each window, the place of its
    (first) maximum. The gradient of a pixel is gathered from the windows that contain it. TPUs have
    an instruction for the gradient.
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
    """Returns the maxima and their places in the window, 3 * row + column, uint8[B, h, w, C]."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    height, width = ((size + 1) // 2 for size in x.shape[1:3])
    y, places = padded[:, : 2 * height - 1 : 2, : 2 * width - 1 : 2], jnp.uint8(0)
    for place in range(1, 9):
        i, j = divmod(place, 3)
        other = padded[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
        # Compare the two candidates, not a candidate with the maximum: XLA may compute a value
        # twice with different rounding, and the maximum would equal neither.
        places = jnp.where((other > y) | jnp.isnan(other), jnp.uint8(place), places)
        y = jnp.maximum(y, other)
    return y, places


def _gathered(x: jax.Array, places: jax.Array, gradient: jax.Array) -> jax.Array:
    """Returns the gradient by x: each pixel sums the windows that have their maximum there."""
    height, width = x.shape[1:3]
    places, gradient = _repeated(places), _repeated(gradient)
    rows, columns = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]
    total = jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    # Row r is row 1 or 2 of window r // 2 and, if r is odd, row 0 of the next window.
    for down in (0, 1):
        for across in (0, 1):
            here = (slice(None), slice(down, down + height), slice(across, across + width))
            row, column = 0 if down else 1 + rows % 2, 0 if across else 1 + columns % 2
            inside = (rows % 2 >= down) & (columns % 2 >= across)
            total += jnp.where(inside & (places[here] == 3 * row + column), gradient[here], 0)
    return total.astype(x.dtype)


def _repeated(windows: jax.Array) -> jax.Array:
    """Returns windows [B, h, w, C], padded by zeros at the end and repeated: [B, 2h+2, 2w+2, C]."""
    padded = jnp.pad(windows, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return padded.repeat(2, axis=1).repeat(2, axis=2)
