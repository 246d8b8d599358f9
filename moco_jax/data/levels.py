"""Grey levels, whole numbers in 0..255, and the matmul of crop, resize and blur on them.

Between operations pictures are `uint8[B, S, 3, S]` planes, as Pillow keeps 8 bits between its own.
A byte a level is a quarter of float32's traffic, which is what augmentation costs an accelerator,
and a last axis of 3 would leave vector units idle.
"""

import jax
import jax.numpy as jnp
from jax import lax


def weigh(equation: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the einsum of whole levels in 0..255 and weights, exact to some .001 of a level.

    One bfloat16 product, the accelerators' fast one, would be off by half a level, and float32 in
    full precision costs a TPU six products and a GPU its tensor cores. But levels are exact in
    bfloat16 as they are, so only the weights are cut, into two parts: two products. A CPU has no
    fast bfloat16 and takes float32.

    Args:
      equation: of `jnp.einsum`, levels first.
      levels: any dtype, whole numbers in 0..255.
      weights: f32.

    Returns:
      f32.
    """
    return lax.platform_dependent(
        levels,
        weights,
        cpu=lambda levels, weights: _weigh_in_float32(equation, levels, weights),
        default=lambda levels, weights: weigh_in_two_parts(equation, levels, weights),
    )


def _weigh_in_float32(equation: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.einsum(
        equation, levels.astype(jnp.float32), weights, precision=lax.Precision.HIGHEST
    )


def weigh_in_two_parts(equation: str, levels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns `weigh` by two products of bfloat16 numbers, summed in float32."""
    # Not a cast there and back, which XLA takes out where it may keep excess precision.
    high = lax.reduce_precision(weights, exponent_bits=8, mantissa_bits=7)
    levels = levels.astype(jnp.bfloat16)

    def product(part):
        return jnp.einsum(
            equation, levels, part.astype(jnp.bfloat16), preferred_element_type=jnp.float32
        )

    return product(high) + product(weights - high)


def round_to_level(pixels: jax.Array) -> jax.Array:
    """Returns f32 pixels rounded to whole levels, halves up, and clipped to 0..255, as uint8."""
    return cut_to_level(pixels + 0.5)


def cut_to_level(pixels: jax.Array) -> jax.Array:
    """Returns f32 pixels clipped to 0..255 and without their fractions, as uint8."""
    return jnp.clip(pixels, 0.0, 255.0).astype(jnp.uint8)


def to_planes(images: jax.Array) -> jax.Array:
    """Returns [B, H, 3, W] from [B, H, W, 3]."""
    return jnp.swapaxes(images, 2, 3)


def to_images(planes: jax.Array) -> jax.Array:
    """Returns [B, H, W, 3] from [B, H, 3, W]."""
    return jnp.swapaxes(planes, 2, 3)
