"""Crops and normalizes scenes; an image and its mask get the same crop and padding.

The functions are pure and run on the accelerator, as in `moco_jax/data/augment/views.py`. Padding
is 0 after normalization, the mean pixel, and is ignored in the mask.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.data.augment.crop import crop_resize, image_bounds
from moco_jax.data.augment.resampling import to_images
from moco_jax.data.augment.views import normalize
from moco_jax.segmentation.voc import IGNORED


def random_windows(key: jax.Array, sizes: jax.Array, out: int, scale: Sequence[float]) -> jax.Array:
    """Returns random square windows f32[B, 4]: top, left, height, width in source pixels.

    A window resized to `out` shows its image at a scale drawn uniformly from `scale`. Its place is
    uniform within the image. On an axis where the scaled image is smaller than `out`, the image's
    place is uniform within the window instead.

    Args:
      sizes: [B, 2], height and width of the images.
      out: S, side of the resized window in pixels.
      scale: lowest and highest scale.
    """
    scale_key, place_key = jax.random.split(key)
    side = out / jax.random.uniform(scale_key, (len(sizes), 1), minval=scale[0], maxval=scale[1])
    corner = jax.random.uniform(place_key, sizes.shape) * (sizes - side)
    return jnp.concatenate([corner, side, side], axis=1)


def cut(
    images: jax.Array, masks: jax.Array, sizes: jax.Array, windows: jax.Array, out: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Crops images (bilinear) and masks (nearest) to windows, resized to `out` pixels.

    Args:
      images: uint8[B, H, W, 3].
      masks: uint8[B, H, W].
      sizes: i32[B, 2], height and width of the images on their canvases.
      windows: f32[B, 4], as from `random_windows`.
      out: S, side of the results in pixels.

    Returns:
      Crops uint8[B, S, S, 3], masks uint8[B, S, S] with 255 outside the image, and bool[B, S, S],
      true inside the image.
    """
    planes = crop_resize(images, windows, out, bounds=image_bounds(sizes))
    rows, row_inside = _nearest(windows[:, 0::2], sizes[:, 0], out)
    columns, column_inside = _nearest(windows[:, 1::2], sizes[:, 1], out)
    inside = row_inside[:, :, None] & column_inside[:, None, :]
    labels = jax.vmap(lambda mask, r, c: mask[r][:, c])(masks, rows, columns)
    return to_images(planes), jnp.where(inside, labels, IGNORED), inside


def _nearest(window: jax.Array, length: jax.Array, out: int) -> tuple[jax.Array, jax.Array]:
    """Returns the source pixel i32[B, S] at each output pixel's centre, and whether it exists.

    `window` f32[B, 2] is start and length on an axis where the image has `length` i32[B] pixels.
    """
    centers = window[:, :1] + (jnp.arange(out)[None] + 0.5) * (window[:, 1:] / out)
    pixels = jnp.floor(centers).astype(jnp.int32)
    inside = (pixels >= 0) & (pixels < length[:, None])
    return jnp.clip(pixels, 0, length[:, None] - 1), inside


def training_view(
    config: ConfigDict, key: jax.Array, images: jax.Array, masks: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns one random crop of each scene: dtype[B, S, S, 3], and its mask uint8[B, S, S]."""
    data = config.data
    window_key, flip_key = jax.random.split(key)
    windows = random_windows(window_key, sizes, data.image_size, data.scale)
    images, labels, inside = cut(images, masks, sizes, windows, data.image_size)
    images = _normalized(images, inside, config)
    flipped = jax.random.bernoulli(flip_key, data.flip, (images.shape[0], 1, 1))
    images = jnp.where(flipped[..., None], images[:, :, ::-1], images)
    return images, jnp.where(flipped, labels[:, :, ::-1], labels)


def evaluation_view(config: ConfigDict, images: jax.Array, sizes: jax.Array) -> jax.Array:
    """Returns whole images at their own sizes, normalized: dtype[B, H, W, 3]."""
    height, width = images.shape[1:3]
    rows = jnp.arange(height)[None] < sizes[:, :1]
    columns = jnp.arange(width)[None] < sizes[:, 1:]
    return _normalized(images, rows[:, :, None] & columns[:, None, :], config)


def _normalized(images: jax.Array, inside: jax.Array, config: ConfigDict) -> jax.Array:
    """Returns the normalized images, 0 outside of them."""
    dtype = jnp.dtype(config.dtype)
    normalized = normalize(images, config.data.mean, config.data.std, dtype)
    return jnp.where(inside[..., None], normalized, jnp.zeros((), dtype))
