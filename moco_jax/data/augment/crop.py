"""Crops and resizes a batch of images of different sizes, as Pillow and torchvision do.

A batch is a canvas `uint8[B, H, W, 3]`: image i fills only its top left `sizes[i]` corner, and
what lies outside is never read. Every size and window is data, so one compiled program serves all.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from moco_jax.data.augment.resampling import resample, to_planes

_TRIES = 10


def random_windows(
    key: jax.Array, sizes: jax.Array, *, scale: Sequence[float], ratio: Sequence[float]
) -> jax.Array:
    """Draws one crop window an image, distributed as torchvision's `RandomResizedCrop.get_params`.

    Ten tries of a uniform area and a log-uniform aspect ratio; the first window that fits is placed
    uniformly, and where none fits the largest central window within `ratio` is taken.

    Args:
      key: a PRNG key.
      sizes: i32[B, 2], height and width of each image in pixels.
      scale: lowest and highest area of the window, as fractions of the image's area.
      ratio: lowest and highest width / height of the window.

    Returns:
      f32[B, 4]: top, left, height and width in source pixels, whole numbers.
    """
    area_key, ratio_key, position_key = jax.random.split(key, 3)
    limits = sizes.astype(jnp.float32)
    shape = (sizes.shape[0], _TRIES)
    areas = jax.random.uniform(area_key, shape, minval=scale[0], maxval=scale[1])
    areas = areas * limits[:, 0:1] * limits[:, 1:2]
    low, high = jnp.log(jnp.asarray(ratio, jnp.float32))
    ratios = jnp.exp(jax.random.uniform(ratio_key, shape, minval=low, maxval=high))
    tried = jnp.round(jnp.sqrt(jnp.stack([areas / ratios, areas * ratios], axis=-1)))

    fits = jnp.all((tried >= 1) & (tried <= limits[:, None, :]), axis=-1)
    # A mask and a sum rather than an index: nothing to gather when the batch is sharded.
    first = fits & (jnp.cumsum(fits, axis=1) == 1)
    window = jnp.sum(jnp.where(first[:, :, None], tried, 0.0), axis=1)
    found = jnp.any(fits, axis=1, keepdims=True)
    window = jnp.where(found, window, _fallback_window(limits, ratio))

    room = limits - window
    offsets = jnp.floor(jax.random.uniform(position_key, room.shape) * (room + 1))
    corner = jnp.where(found, jnp.minimum(offsets, room), jnp.floor(room / 2))
    return jnp.concatenate([corner, window], axis=1)


def _fallback_window(limits: jax.Array, ratio: Sequence[float]) -> jax.Array:
    """Returns f32[B, 2], the largest windows in `limits` f32[B, 2] of an aspect in `ratio`."""
    height, width = limits[:, 0], limits[:, 1]
    tallest = jnp.minimum(height, jnp.round(width / min(ratio)))
    widest = jnp.minimum(width, jnp.round(height * max(ratio)))
    return jnp.maximum(jnp.stack([tallest, widest], axis=1), 1.0)


def center_windows(sizes: jax.Array, *, resize: int, crop: int) -> jax.Array:
    """Returns the windows of torchvision's `Resize(resize)` followed by `CenterCrop(crop)`.

    Args:
      sizes: i32[B, 2], height and width of each image in pixels.
      resize: length of the shorter side after `Resize`, in pixels.
      crop: side of the central square, in pixels of the resized image.

    Returns:
      f32[B, 4]: top, left, height and width in source pixels, fractional. To be resized to `crop`
      with `bounds=image_bounds(sizes)`, since the crop comes after the resize.

    Raises:
      ValueError: if the crop does not fit into the resized image.
    """
    if crop > resize:
        raise ValueError(f"crop must be at most resize, got crop={crop}, resize={resize}")
    shorter = jnp.min(sizes, axis=1, keepdims=True)
    resized = resize * sizes // shorter
    # torchvision rounds half a pixel to even, as Python and jnp.round do.
    corner = jnp.round((resized - crop) / 2)
    step = sizes / resized
    return jnp.concatenate([corner * step, crop * step], axis=1)


def image_bounds(sizes: jax.Array) -> jax.Array:
    """Returns f32[B, 4], the windows that hold the whole images of `sizes` i32[B, 2]."""
    return jnp.concatenate([jnp.zeros_like(sizes), sizes], axis=1).astype(jnp.float32)


def crop_resize(
    images: jax.Array, windows: jax.Array, out: int, *, bounds: jax.Array | None = None
) -> jax.Array:
    """Cuts a window from each image and resizes it with Pillow's antialiased bilinear filter.

    Two interpolation matmuls, horizontal first and rounded in between, as Pillow's 8-bit passes are
    (Pillow `Resample.c`; its weights have 22 bits, these as many as `levels.resample` keeps).

    Args:
      images: uint8[B, H, W, 3], the canvas.
      windows: f32[B, 4], top, left, height and width in pixels.
      out: side of the square result in pixels.
      bounds: f32[B, 4], the part of the canvas whose pixels the filter may read. The default is
        `windows`: crop, then resize. For resize, then crop, pass `image_bounds(sizes)`.

    Returns:
      uint8[B, out, 3, out], planes.
    """
    bounds = windows if bounds is None else bounds
    _, height, width, _ = images.shape
    down = _triangle_weights(windows[:, 0::2], bounds[:, 0::2], height, out)
    across = _triangle_weights(windows[:, 1::2], bounds[:, 1::2], width, out)
    # On planes both products are plain matmuls, with nothing to transpose between them.
    return resample(to_planes(images), across, down)


def _triangle_weights(window: jax.Array, bounds: jax.Array, length: int, out: int) -> jax.Array:
    """Returns the interpolation matrices of one axis.

    Args:
      window: f32[B, 2], start and length of the windows in pixels.
      bounds: f32[B, 2], start and length of the pixels that may be read.
      length: pixels of the canvas on this axis.
      out: pixels of the result on this axis.

    Returns:
      f32[B, out, length], rows that sum to 1, or are 0 where no pixel is near.
    """
    start, step = window[:, 0:1, None], window[:, 1:2, None] / out
    # Distances are taken from the window's start: it is whole in training, so they stay exact.
    centers = (jnp.arange(out, dtype=jnp.float32)[None, :, None] + 0.5) * step
    pixels = jnp.arange(length, dtype=jnp.float32)[None, None, :] + 0.5
    distance = jnp.abs(pixels - start - centers)
    weights = jnp.maximum(1.0 - distance / jnp.maximum(step, 1.0), 0.0)
    first, last = bounds[:, 0:1, None], (bounds[:, 0:1] + bounds[:, 1:2])[:, :, None]
    weights = jnp.where((pixels > first) & (pixels < last), weights, 0.0)
    return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-6)
