"""Grey levels, whole numbers in 0..255, and the matmul of crop, resize and blur on them.

Between operations pictures are `uint8[B, S, 3, S]` planes, as Pillow keeps 8 bits between its own.
A byte a level is a quarter of float32's traffic, which is what augmentation costs an accelerator,
and a last axis of 3 would leave vector units idle.
"""

import jax
import jax.numpy as jnp
from jax import lax


def weigh(equation: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the einsum of whole levels in 0..255 and weights.

    One bfloat16 product, a TPU's default, would be off by half a level, and full float32 costs it
    six products and a GPU its tensor cores. `HIGH` stands between: three bfloat16 products on a TPU
    (off by some .001 of a level), TensorFloat-32 on a GPU (some .01; levels are exact in both
    formats, so only weights are cut), float32 on a CPU.

    Args:
      equation: of `jnp.einsum`, levels first.
      levels: any dtype, whole numbers in 0..255.
      weights: f32.

    Returns:
      f32.
    """
    return jnp.einsum(equation, levels.astype(jnp.float32), weights, precision=lax.Precision.HIGH)


def round_to_level(pixels: jax.Array) -> jax.Array:
    """Returns f32 pixels rounded to whole levels, halves up, and clipped to 0..255, as uint8."""
    return cut_to_level(pixels + 0.5)


def cut_to_level(pixels: jax.Array) -> jax.Array:
    """Returns f32 pixels clipped to 0..255 and without their fractions, as uint8."""
    # Floored first: XLA 0.10 on CPUs may fuse the cast with a large matmul, and then it rounds.
    return jnp.floor(clip_levels(pixels)).astype(jnp.uint8)


def clip_levels(pixels: jax.Array) -> jax.Array:
    """Returns f32 pixels clipped to 0..255."""
    return jnp.clip(pixels, 0.0, 255.0)


def to_planes(images: jax.Array) -> jax.Array:
    """Returns [B, H, 3, W] from [B, H, W, 3]."""
    return jnp.swapaxes(images, 2, 3)


def to_images(planes: jax.Array) -> jax.Array:
    """Returns [B, H, W, 3] from [B, H, 3, W]."""
    return jnp.swapaxes(planes, 2, 3)
