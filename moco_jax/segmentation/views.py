"""What the network sees of a scene: an image and its mask, cut and padded alike.

Pure functions for the accelerator, as in `moco_jax/data/augment/views.py`. Outside an image the
pixels are 0 after normalisation, which is the mean, and the mask is ignored.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from moco_jax.data.augment.crop import crop_resize, image_bounds
from moco_jax.data.augment.resampling import to_images
from moco_jax.data.augment.views import normalize
from moco_jax.segmentation.voc import IGNORED


def random_windows(key: jax.Array, sizes: jax.Array, out: int, scale: Sequence[float]) -> jax.Array:
    """Returns windows f32[B, 4] (top, left, height, width in source pixels), square.

    Resized to `out`, a window shows its image at a scale uniform in `scale`. It lies uniformly
    within the image, or on an axis on which the scaled image is smaller than `out`, the image
    lies uniformly within the window.
    """
    scale_key, place_key = jax.random.split(key)
    low, high = scale
    drawn = jax.random.uniform(scale_key, (sizes.shape[0], 1), minval=low, maxval=high)
    side = out / drawn
    place = jax.random.uniform(place_key, sizes.shape)
    corner = place * (sizes - side)
    return jnp.concatenate([corner, side, side], axis=1)


def cut(
    images: jax.Array, masks: jax.Array, sizes: jax.Array, windows: jax.Array, out: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cuts windows out of images and masks, and resizes them: bilinear, and to the nearest.

    Args:
      images: uint8[B, H, W, 3].
      masks: uint8[B, H, W].
      sizes: i32[B, 2], of the images on their canvases.
      windows: f32[B, 4].
      out: S, side of the results in pixels.

    Returns:
      uint8[B, S, S, 3]; uint8[B, S, S], 255 outside of the images; bool[B, S, S], whether a pixel
      is of the image.
    """
    planes = crop_resize(images, windows, out, bounds=image_bounds(sizes))
    rows, row_inside = _nearest(windows[:, 0::2], sizes[:, 0], out)
    columns, column_inside = _nearest(windows[:, 1::2], sizes[:, 1], out)
    inside = row_inside[:, :, None] & column_inside[:, None, :]
    labels = jax.vmap(lambda mask, r, c: mask[r][:, c])(masks, rows, columns)
    return to_images(planes), jnp.where(inside, labels, IGNORED), inside


def _nearest(window: jax.Array, length: jax.Array, out: int) -> tuple[jax.Array, jax.Array]:
    """Returns i32[B, S], the source pixels under the result's centres, and whether they exist.

    Args:
      window: f32[B, 2], start and length of an axis.
      length: i32[B], pixels of the image on it.
      out: S.
    """
    centers = window[:, :1] + (jnp.arange(out)[None] + 0.5) * (window[:, 1:] / out)
    pixels = jnp.floor(centers).astype(jnp.int32)
    inside = (pixels >= 0) & (pixels < length[:, None])
    return jnp.clip(pixels, 0, length[:, None] - 1), inside


def training_view(config: ConfigDict):
    """Makes the function that draws a crop of each scene.

    Args:
      config: the whole config: `data` and `dtype`.

    Returns:
      A function of (key, images, masks, sizes) that returns dtype[B, S, S, 3] and uint8[B, S, S].
    """
    data, dtype = config.data, jnp.dtype(config.dtype)

    def view(key, images, masks, sizes):
        window_key, flip_key = jax.random.split(key)
        windows = random_windows(window_key, sizes, data.image_size, data.scale)
        images, labels, inside = cut(images, masks, sizes, windows, data.image_size)
        images = _filled(images, inside, data.mean, data.std, dtype)
        flipped = jax.random.bernoulli(flip_key, data.flip, (images.shape[0], 1, 1))
        images = jnp.where(flipped[..., None], images[:, :, ::-1], images)
        return images, jnp.where(flipped, labels[:, :, ::-1], labels)

    return view


def evaluation_view(config: ConfigDict):
    """Makes the function that normalises whole images, at their own sizes.

    Returns:
      A function of (images, sizes) that returns dtype[B, H, W, 3].
    """
    data, dtype = config.data, jnp.dtype(config.dtype)

    def view(images, sizes):
        height, width = images.shape[1:3]
        rows = jnp.arange(height)[None] < sizes[:, :1]
        columns = jnp.arange(width)[None] < sizes[:, 1:]
        inside = rows[:, :, None] & columns[:, None, :]
        return _filled(images, inside, data.mean, data.std, dtype)

    return view


def _filled(
    images: jax.Array,
    inside: jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike,
) -> jax.Array:
    """Returns the images normalised, and 0 outside of them."""
    normal = normalize(images, mean, std, dtype)
    return jnp.where(inside[..., None], normal, jnp.zeros((), dtype))
