"""Crops and resizes batches of images of different sizes, as Pillow and torchvision do.

A batch is a canvas `uint8[B, H, W, 3]`. Image i fills only the top left `sizes[i]` corner; pixels
outside are never read. Sizes and windows are arrays, so one compiled program handles all of them.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from moco_jax.data.augment.recipes import BICUBIC, BILINEAR
from moco_jax.data.augment.resampling import resample, to_planes

_TRIES = 10


def random_crops(
    crop_key: jax.Array,
    shift_key: jax.Array,
    images: jax.Array,
    sizes: jax.Array,
    out: int,
    *,
    scale: Sequence[float],
    ratio: Sequence[float],
    interpolation: str = BILINEAR,
    flip: float = 0.0,
    margin: int = 0,
    shift: int = 0,
) -> jax.Array:
    """Returns a random window of each image, resized and cut.

    The window is resized to `out + margin` pixels and mirrored with probability `flip`. The result
    is its part of `out` pixels that begins 0 to `shift` pixels from the top and from the left. Two
    calls with one `crop_key` cut two parts of the same resized window (CMAE, Huang et al. 2022).

    Args:
      crop_key: PRNG key of the window and of the mirroring.
      shift_key: PRNG key of the place of the part.
      images: uint8[B, H, W, 3], canvases.
      sizes: i32[B, 2], height and width of each image in pixels.
      out: side of the square result in pixels.
      scale, ratio: as in `random_windows`.
      interpolation: as in `crop_resize`.
      flip: a probability.
      margin: pixels.
      shift: pixels, at most `margin`.

    Returns:
      uint8[B, out, 3, out], planes.
    """
    if flip > 0:
        crop_key, flip_key = jax.random.split(crop_key)
    windows = parts = random_windows(crop_key, sizes, scale=scale, ratio=ratio)
    if flip > 0:
        parts = _mirrored(parts, jax.random.bernoulli(flip_key, flip, (len(sizes), 1)))
    if margin:
        offsets = jnp.floor(jax.random.uniform(shift_key, (len(sizes), 2)) * (shift + 1))
        step = parts[:, 2:] / (out + margin)
        corner = parts[:, :2] + jnp.minimum(offsets, shift) * step
        parts = jnp.concatenate([corner, out * step], axis=1)
    return crop_resize(images, parts, out, bounds=windows, interpolation=interpolation)


def _mirrored(windows: jax.Array, chosen: jax.Array) -> jax.Array:
    """Returns windows f32[B, 4]; those that are `chosen` bool[B, 1] begin right and go left."""
    top, left, height, width = jnp.split(windows, 4, axis=1)
    left, width = jnp.where(chosen, left + width, left), jnp.where(chosen, -width, width)
    return jnp.concatenate([top, left, height, width], axis=1)


def random_windows(
    key: jax.Array, sizes: jax.Array, *, scale: Sequence[float], ratio: Sequence[float]
) -> jax.Array:
    """Returns one random crop window per image, distributed as torchvision's `RandomResizedCrop`.

    It draws ten windows of uniform area and log-uniform aspect ratio, and places the first that
    fits uniformly. If none fits, it returns the largest central window with a ratio in `ratio`.

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
    # A mask and a sum instead of an index need no gather when the batch is sharded.
    first = fits & (jnp.cumsum(fits, axis=1) == 1)
    window = jnp.sum(jnp.where(first[:, :, None], tried, 0.0), axis=1)
    found = jnp.any(fits, axis=1, keepdims=True)
    window = jnp.where(found, window, _fallback_window(limits, ratio))

    room = limits - window
    offsets = jnp.floor(jax.random.uniform(position_key, room.shape) * (room + 1))
    corner = jnp.where(found, jnp.minimum(offsets, room), jnp.floor(room / 2))
    return jnp.concatenate([corner, window], axis=1)


def _fallback_window(limits: jax.Array, ratio: Sequence[float]) -> jax.Array:
    """Returns f32[B, 2], the largest windows inside `limits` f32[B, 2] with a ratio in `ratio`."""
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
      f32[B, 4]: top, left, height and width in source pixels, fractional. Pass them to
      `crop_resize` with `bounds=image_bounds(sizes)`, since the crop follows the resize.

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
    """Returns f32[B, 4], windows that cover whole images of `sizes` i32[B, 2]."""
    return jnp.concatenate([jnp.zeros_like(sizes), sizes], axis=1).astype(jnp.float32)


def crop_resize(
    images: jax.Array,
    windows: jax.Array,
    out: int,
    *,
    bounds: jax.Array | None = None,
    interpolation: str = BILINEAR,
) -> jax.Array:
    """Returns a window of each image, resized with Pillow's antialiased filters.

    As Pillow's 8-bit passes (`Resample.c`), it runs two interpolation matmuls, horizontal first,
    and rounds after each. Pillow's weights have 22 bits; `resample` documents the bits kept here.

    Args:
      images: uint8[B, H, W, 3], canvases.
      windows: f32[B, 4], top, left, height and width in pixels. A negative width mirrors: `left`
        is then the right end of the window, which needs `bounds`.
      out: side of the square result in pixels.
      bounds: f32[B, 4], the part of the canvas that the filter may read. The default, `windows`,
        crops and then resizes. To resize and then crop, pass `image_bounds(sizes)`.
      interpolation: "bilinear", or "bicubic" for windows inside of `bounds`.

    Returns:
      uint8[B, out, 3, out], planes.
    """
    bounds = windows if bounds is None else bounds
    _, height, width, _ = images.shape
    filtered = _FILTERS[interpolation]
    down = _weights(filtered, windows[:, 0::2], bounds[:, 0::2], height, out)
    across = _weights(filtered, windows[:, 1::2], bounds[:, 1::2], width, out)
    # On planes both products are plain matmuls without a transpose between them.
    return resample(to_planes(images), across, down)


def _triangle(distance: jax.Array) -> jax.Array:
    return jnp.maximum(1.0 - distance, 0.0)


def _cubic(distance: jax.Array) -> jax.Array:
    """Returns the weights at distances of at least 0: Keys' cubic with a = -1/2 (Keys 1981)."""
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return jnp.where(distance < 1.0, near, jnp.where(distance < 2.0, far, 0.0))


_FILTERS = {BILINEAR: _triangle, BICUBIC: _cubic}


def _weights(
    filtered: Callable[[jax.Array], jax.Array],
    window: jax.Array,
    bounds: jax.Array,
    length: int,
    out: int,
) -> jax.Array:
    """Returns the interpolation matrices f32[B, out, length] for one axis.

    Rows sum to 1, or are 0 if no pixel is near. `window` and `bounds` f32[B, 2] are the start and
    the length of the windows and of the ranges that may be read, in pixels of the canvas.
    `filtered` turns distances into weights.
    """
    start, step = window[:, 0:1, None], window[:, 1:2, None] / out
    # Distances from the start of the window stay exact where the start is whole.
    centers = (jnp.arange(out, dtype=jnp.float32)[None, :, None] + 0.5) * step
    pixels = jnp.arange(length, dtype=jnp.float32)[None, None, :] + 0.5
    distance = jnp.abs(pixels - start - centers)
    weights = filtered(distance / jnp.maximum(jnp.abs(step), 1.0))
    first, last = bounds[:, 0:1, None], (bounds[:, 0:1] + bounds[:, 1:2])[:, :, None]
    weights = jnp.where((pixels > first) & (pixels < last), weights, 0.0)
    return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-6)
