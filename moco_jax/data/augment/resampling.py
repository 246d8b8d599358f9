"""Resamples planes of 8-bit levels by matmuls, for crop, resize and blur.

Between operations images are planes `uint8[B, S, 3, S]`; Pillow also keeps 8 bits. Memory traffic
limits augmentation on accelerators, and uint8 has a quarter of the traffic of float32. A last axis
of 3 channels would leave vector units idle.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from moco_jax.parallel.platforms import by_platform


def resample(planes: jax.Array, across: jax.Array, down: jax.Array) -> jax.Array:
    """Returns planes with weighted sums along rows, then along columns; each is rounded to levels.

    Precision: one bfloat16 product (the TPU default) is off by half a level. Full float32 needs
    six products on a TPU and can't use the tensor cores of a GPU. Levels are exact in 8 bits, so
    only the weights lose precision. `Precision.HIGH` is three bfloat16 products on a TPU (error
    about .001 of a level) and float32 on a CPU. A GPU uses float16 (error about .01): it keeps as
    many bits as TensorFloat-32 except for the smallest weights, at twice the speed and half the
    memory.

    Args:
      planes: uint8[B, H, 3, W].
      across: f32[B, X, W], weights of the columns, each in -1..1.
      down: f32[B, Y, H], weights of the rows, each in -1..1.

    Returns:
      uint8[B, Y, 3, X].
    """
    # On a GPU the levels between the products are float16: XLA then fuses rounding and product.
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
        # A TPU stores the channels separately; one product over all of them would copy them.
        down = jnp.broadcast_to(down[:, None], (down.shape[0], 3, *down.shape[1:]))
        equation = "bhcx,bcyh->bycx"
    columns = nearest_level(product(equation, rows, down)).astype(dtype)
    return columns.astype(jnp.uint8)


def in_float32(equation: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the einsum f32 of levels (any dtype) and weights f32."""
    return jnp.einsum(equation, levels.astype(jnp.float32), weights, precision=lax.Precision.HIGH)


def in_float16(equation: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the einsum f32 of levels (any dtype) and weights f32, both cast to float16."""
    halves = levels.astype(jnp.float16), weights.astype(jnp.float16)
    return jnp.einsum(equation, *halves, preferred_element_type=jnp.float32)


def nearest_level(pixels: jax.Array) -> jax.Array:
    """Returns f32 pixels rounded half up to whole levels and clipped to 0..255, as f32."""
    # Floor before any cast: jaxlib 0.10 on CPUs may fuse the cast with a large matmul and round.
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
