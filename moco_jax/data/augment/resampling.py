"""Grey levels, whole numbers in 0..255, and the matmul of crop, resize and blur on them.

Between operations images are `uint8[B, S, 3, S]` planes, as Pillow keeps 8 bits between its own.
A byte a level is a quarter of float32's traffic, which is what augmentation costs an accelerator,
and a last axis of 3 would leave vector units idle.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from moco_jax.parallel.platforms import by_platform


def resample(planes: jax.Array, across: jax.Array, down: jax.Array) -> jax.Array:
    """Returns planes whose rows, then columns are weighted sums, rounded after each to levels.

    One bfloat16 product, a TPU's default, would be off by half a level, and full float32 costs it
    six products and a GPU its tensor cores. Levels are exact in 8 bits, so only weights need be
    cut: `HIGH` is three bfloat16 products on a TPU (off by some .001 of a level) and float32 on a
    CPU; a GPU takes float16 (some .01), which keeps as many bits of all but the smallest weights as
    its TensorFloat-32, at twice the speed and half the memory.

    Args:
      planes: uint8[B, H, 3, W].
      across: f32[B, X, W], weights in 0..1.
      down: f32[B, Y, H], likewise.

    Returns:
      uint8[B, Y, 3, X].
    """
    # Between its products float16 holds the levels: XLA then rounds in the products' kernels.
    return by_platform(
        planes,
        across,
        down,
        default=functools.partial(_resample, in_float32, jnp.uint8),
        gpu=functools.partial(_resample, in_float16, jnp.float16),
        tpu=functools.partial(_resample, in_float32, jnp.uint8, by_channel=True),
    )


def _resample(
    product: Callable[..., jax.Array],
    dtype: DTypeLike,
    planes: jax.Array,
    across: jax.Array,
    down: jax.Array,
    by_channel: bool = False,
) -> jax.Array:
    rows = nearest_level(product("bhcw,bxw->bhcx", planes, across)).astype(dtype)
    equation = "bhcx,byh->bycx"
    if by_channel:
        # A TPU keeps the channels apart; for one product over all of them it would copy them.
        down = jnp.broadcast_to(down[:, None], (down.shape[0], 3, *down.shape[1:]))
        equation = "bhcx,bcyh->bycx"
    columns = nearest_level(product(equation, rows, down)).astype(dtype)
    return columns.astype(jnp.uint8)


def in_float32(equation: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the einsum, f32, of levels of any dtype and weights f32."""
    return jnp.einsum(equation, levels.astype(jnp.float32), weights, precision=lax.Precision.HIGH)


def in_float16(equation: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the einsum, f32, of levels of any dtype and weights f32, cut to float16."""
    halves = levels.astype(jnp.float16), weights.astype(jnp.float16)
    return jnp.einsum(equation, *halves, preferred_element_type=jnp.float32)


def nearest_level(pixels: jax.Array) -> jax.Array:
    """Returns f32 pixels rounded to whole levels, halves up, and clipped to 0..255, as f32."""
    # Floored before any cast: XLA 0.10 on CPUs may fuse the cast with a large matmul, and then it
    # rounds.
    return jnp.floor(clip_levels(pixels + 0.5))


def clip_levels(pixels: jax.Array) -> jax.Array:
    """Returns f32 pixels clipped to 0..255."""
    return jnp.clip(pixels, 0.0, 255.0)


def to_planes(images: jax.Array) -> jax.Array:
    """Returns [B, H, 3, W] from [B, H, W, 3]."""
    return jnp.swapaxes(images, 2, 3)


def to_images(planes: jax.Array) -> jax.Array:
    """Returns [B, H, W, 3] from [B, H, 3, W]."""
    return jnp.swapaxes(planes, 2, 3)
