"""Shears, translations and rotations of a batch, each image by its own amount.

An image is a plane of words i32[S, S]: red, green and blue in the lowest 24 bits. Every row moves
by any number of pixels, then every column, then every row again. Three shears are a rotation (Paeth
1986). So no step reads pixels in two dimensions, which is slow on a TPU.
"""

import math

import jax
import jax.numpy as jnp

from moco_jax.data.augment.color import pack, unpack
from moco_jax.data.augment.resampling import nearest_level
from moco_jax.parallel.platforms import by_platform

MOST_DEGREES = 30.0  # of a rotation


def shear_x(factor: jax.Array, size: int) -> jax.Array:
    """Returns the pixels f32[B, S] by which each row reads to its right, as Pillow's AFFINE."""
    return factor[:, None] * (jnp.arange(size) + 0.5)[None]


def rotation(degrees: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns the offsets f32[B, S] of the rows (used twice) and of the columns of a rotation."""
    angle = jnp.deg2rad(degrees)[:, None]
    from_centre = (jnp.arange(size) + 0.5 - size / 2)[None]
    return -jnp.tan(angle / 2) * from_centre, jnp.sin(angle) * from_centre


def warp(
    words: jax.Array, first: jax.Array, down: jax.Array, last: jax.Array, fill: jax.Array
) -> jax.Array:
    """Returns i32[B, S, S], resampled by moving rows, columns and rows again.

    A movement of one axis is Pillow's bilinear AFFINE transform, but for the rounding: to the
    nearest level here, down in Pillow.
    Departure: Pillow rotates by one interpolation in two dimensions, this function by three in one
    dimension, which blurs a little more.

    Args:
      words: i32[B, S, S], packed pixels.
      first: f32[B, S], the pixels by which row y reads to the right.
      down: f32[B, S], the pixels by which column x reads downwards.
      last: as `first`, after the columns; at most those of a rotation by `MOST_DEGREES`.
      fill: i32[], the packed colour outside the image.
    """
    size = words.shape[1]
    # Rows that leave the image on the way of a rotation come back.
    margin = math.ceil(math.tan(math.radians(MOST_DEGREES / 2)) * size / 2) + 1
    words = jnp.pad(words, ((0, 0), (0, 0), (margin, margin)))
    words = _move(words, first, fill, margin)
    # The columns of the margin move as the line through all columns.
    slope = (down[:, -1:] - down[:, :1]) / max(size - 1, 1)
    beyond = jnp.arange(-margin, size + margin)[None]
    columns = down[:, :1] + slope * beyond
    words = _move(words.swapaxes(1, 2), columns, fill, 0).swapaxes(1, 2)
    return _move(words, last, fill, 0)[:, :, margin : margin + size]


def _move(words: jax.Array, offsets: jax.Array, fill: jax.Array, margin: int) -> jax.Array:
    """Returns i32[B, R, W] whose row r reads offsets[:, r] pixels to the right.

    The pixels of a row are those between two margins; outside of them is the colour `fill`.
    """
    width = words.shape[2]
    whole = jnp.floor(offsets)
    fraction = (offsets - whole)[:, :, None]
    left = by_platform(words, whole.astype(jnp.int32) % width, default=_indexed, tpu=_shifted)
    right = jnp.roll(left, -1, axis=2)
    at = jnp.arange(width)[None, None] + whole[:, :, None]
    # Between the edge of the image and the centre of its first pixel, that pixel extends.
    left, right = (
        jnp.where(at < margin, right, left),
        jnp.where(at + 1 >= width - margin, left, right),
    )
    pairs = zip(unpack(left), unpack(right), strict=True)
    moved = pack([nearest_level(a + fraction * (b - a)) for a, b in pairs])
    inside = (at + fraction >= margin - 0.5) & (at + fraction < width - margin - 0.5)
    # A barrier: otherwise the next movement computes this one again for each pixel that it reads.
    return jax.lax.optimization_barrier(jnp.where(inside, moved, fill))


def _indexed(words: jax.Array, shifts: jax.Array) -> jax.Array:
    """Returns i32[B, R, W], each row rotated to the left by shifts i32[B, R] in 0..W - 1."""
    at = (jnp.arange(words.shape[2])[None, None] + shifts[:, :, None]) % words.shape[2]
    return jnp.take_along_axis(words, at, axis=2)


def _shifted(words: jax.Array, shifts: jax.Array) -> jax.Array:
    """Returns the same without reading by index, which a TPU does slowly: bit by bit."""
    for bit in range((words.shape[2] - 1).bit_length()):
        moved = (shifts >> bit) & 1 == 1
        words = jnp.where(moved[:, :, None], jnp.roll(words, -(2**bit), axis=2), words)
        words = jax.lax.optimization_barrier(words)
    return words
