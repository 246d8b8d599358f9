"""Grey levels, whole numbers in 0..255, and the matmul of crop, resize and blur on them.

Between operations pictures are `uint8[B, S, 3, S]` planes, as Pillow keeps 8 bits between its own.
A byte a level is a quarter of float32's traffic, which is what augmentation costs an accelerator,
and a last axis of 3 would leave vector units idle.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moco_jax.platforms import by_platform


def weigh(equation: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the einsum of whole levels in 0..255 and weights in 0..1.

    One bfloat16 product, a TPU's default, would be off by half a level, and float32 costs it six
    products and a GPU its tensor cores. Levels are exact in 8 bits, so only weights are cut: on a
    TPU to a sum of two bfloat16, 16 bits in two products (off by some .001 of a level), on a GPU to
    float16, 11 bits at twice the speed and half the memory of TensorFloat-32 (some .01). A CPU
    keeps float32.

    Args:
      equation: of `jnp.einsum`, levels first.
      levels: any dtype, whole numbers in 0..255.
      weights: f32.

    Returns:
      f32.
    """
    ways = {"default": in_float32, "gpu": in_float16, "tpu": in_two_bfloat16}
    ways = {name: functools.partial(way, equation) for name, way in ways.items()}
    return by_platform(levels, weights, **ways)


def in_float32(equation: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
    levels = levels.astype(jnp.float32)
    return jnp.einsum(equation, levels, weights, precision=lax.Precision.HIGHEST)


def in_float16(equation: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
    halves = levels.astype(jnp.float16), weights.astype(jnp.float16)
    return jnp.einsum(equation, *halves, preferred_element_type=jnp.float32)


def in_two_bfloat16(equation: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
    # Not by casts alone: XLA may leave out a cast to bfloat16 and back.
    high = lax.reduce_precision(weights, exponent_bits=8, mantissa_bits=7)
    parts = jnp.stack([high, weights - high]).astype(jnp.bfloat16)
    product = functools.partial(jnp.einsum, equation, preferred_element_type=jnp.float32)
    levels = levels.astype(jnp.bfloat16)
    return product(levels, parts[0]) + product(levels, parts[1])


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
