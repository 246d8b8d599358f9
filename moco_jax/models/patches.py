"""Patches of images, their random selection and their order."""

import jax
import jax.numpy as jnp

_GREY = 127  # level of a hidden patch


def split(images: jax.Array, patch: int) -> jax.Array:
    """Returns the patches [B, H/p, W/p, p * p * C] of images [B, H, W, C].

    The values of a patch are in the order of rows, columns and channels.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    parts = images.reshape(batch, rows, patch, columns, patch, channels).swapaxes(2, 3)
    return parts.reshape(batch, rows, columns, patch * patch * channels)


def join(patches: jax.Array, patch: int) -> jax.Array:
    """Returns the images [B, H, W, C] of patches [B, H/p, W/p, p * p * C]."""
    batch, rows, columns, values = patches.shape
    parts = patches.reshape(batch, rows, columns, patch, patch, values // patch**2)
    return parts.swapaxes(2, 3).reshape(batch, rows * patch, columns * patch, -1)


def hide(images: jax.Array, hidden: jax.Array, patch: int) -> jax.Array:
    """Returns images uint8[B, H, W, C] that are grey in the hidden patches [B, H/p, W/p]."""
    return join(jnp.where(hidden[..., None], jnp.uint8(_GREY), split(images, patch)), patch)


def kept(fraction: float, patches: int, block: int = 1) -> int:
    """Returns how many of the patches of an image stay visible.

    Args:
      fraction: of the patches that are masked.
      patches: L, of an image.
      block: side of the masked blocks in patches.
    """
    # The product is rounded first: 1 - .9 is a little less than .1 in binary.
    return int(round(patches // block**2 * (1 - fraction), 6)) * block**2


def noise(key: jax.Array, image: jax.Array, rows: int, columns: int, block: int = 1) -> jax.Array:
    """Returns f32[rows, columns] in 0..1 of an image i32[], equal within a masked block.

    The patches with the smallest noise stay visible.
    """
    shape = rows // block, columns // block
    drawn = jax.random.uniform(jax.random.fold_in(key, image), shape, jnp.float32)
    return drawn.repeat(block, axis=0).repeat(block, axis=1)


def select(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """Returns rows [B, n, d] of x [B, L, d], those of the indices i32[B, n]."""
    return jnp.take_along_axis(x, chosen[:, :, None], axis=1)


@jax.custom_vjp
def permute(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """Returns x [B, L, d] with the rows `order` i32[B, L], of which `inverse` is the inverse.

    The gradient is a permutation too; that of an index is a sum over equal indices.
    """
    return select(x, order)


def _forward(x, order, inverse):
    return select(x, order), inverse


def _backward(inverse, gradient):
    return select(gradient, inverse), None, None


permute.defvjp(_forward, _backward)
