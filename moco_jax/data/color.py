"""Colour changes with the 8-bit arithmetic of Pillow, and torchvision's `ColorJitter` from them.

Pictures are f32[B, S, S, 3] on the way in and out and hold whole levels in 0..255. Inside they are
f32[B, S, 3, S] planes, since a last axis of 3 leaves vector units idle. The float arithmetic is on
whole numbers below 2**24 wherever Pillow's is on integers, so it is exact.
"""

import jax
import jax.numpy as jnp

_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns pictures f32[B, S, S, 3] blended with black, as Pillow's `ImageEnhance.Brightness`.

    Args:
      images: f32[B, S, S, 3], grey levels.
      factor: f32[B], 0 is black and 1 changes nothing.
    """
    return _blend_images(images, factor, _BRIGHTNESS)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns pictures f32[B, S, S, 3] blended with their mean grey (`ImageEnhance.Contrast`).

    Args:
      images: f32[B, S, S, 3], grey levels.
      factor: f32[B], 0 is uniform grey and 1 changes nothing.
    """
    return _blend_images(images, factor, _CONTRAST)


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns pictures f32[B, S, S, 3] blended with their grey version (`ImageEnhance.Color`).

    Args:
      images: f32[B, S, S, 3], grey levels.
      factor: f32[B], 0 is grey and 1 changes nothing.
    """
    return _blend_images(images, factor, _SATURATION)


def hue(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns pictures f32[B, S, S, 3] with the hue turned (torchvision's `adjust_hue` on Pillow).

    It goes through Pillow's 8-bit HSV, so even a shift of 0 changes colours a little.

    Args:
      images: f32[B, S, S, 3], grey levels.
      shift: f32[B] in [-.5, .5], in turns of the colour wheel.
    """
    return _to_images(_turn_hue(_to_planes(images), shift))


def grayscale(images: jax.Array) -> jax.Array:
    """Returns the luma of pictures f32[B, S, S, 3] in all channels (Pillow's `convert('L')`)."""
    luma = _luma(_to_planes(images))
    return jnp.broadcast_to(luma[:, :, :, None], images.shape)


def solarize(images: jax.Array, threshold: float = 128) -> jax.Array:
    """Returns pictures f32[B, S, S, 3] with levels from `threshold` on inverted (`ImageOps`)."""
    return jnp.where(images < threshold, images, 255.0 - images)


def color_jitter(
    key: jax.Array,
    images: jax.Array,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue, in an order of its own for each picture.

    Distributed as torchvision's `ColorJitter`: all 24 orders are equally likely.

    Args:
      key: a PRNG key.
      images: f32[B, S, S, 3], grey levels.
      brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
      contrast: likewise.
      saturation: likewise.
      hue: the shift is uniform in [-hue, hue], in turns; 0 leaves the step out (as torchvision).

    Returns:
      f32[B, S, S, 3], grey levels.
    """
    batch = images.shape[0]
    order_key, factor_key, hue_key = jax.random.split(key, 3)
    strengths = jnp.asarray([brightness, contrast, saturation], jnp.float32)[None, :]
    lowest = jnp.maximum(1.0 - strengths, 0.0)
    fraction = jax.random.uniform(factor_key, (batch, 3))
    factors = lowest + fraction * (1.0 + strengths - lowest)
    shift = jax.random.uniform(hue_key, (batch,), minval=-hue, maxval=hue) if hue else None
    # The ranks of four uniform numbers are a uniform permutation.
    ranks = jnp.argsort(jax.random.uniform(order_key, (batch, 4)), axis=1)
    return apply_jitter(images, ranks, factors, shift)


def apply_jitter(
    images: jax.Array, ranks: jax.Array, factors: jax.Array, shift: jax.Array | None
) -> jax.Array:
    """Applies the four changes of `color_jitter` to each picture in its own order.

    Args:
      images: f32[B, S, S, 3], grey levels.
      ranks: i32[B, 4], the turn (0..3) at which brightness, contrast, saturation, hue come.
      factors: f32[B, 3], for brightness, contrast and saturation.
      shift: f32[B], for hue, or None to leave hue alone.

    Returns:
      f32[B, S, S, 3], grey levels.
    """
    # Hue costs most, so it runs once: between three blends for what comes before it in a picture's
    # order and three for what comes after, in place of four turns that each compute everything.
    planes = _to_planes(images)
    blend_ranks, hue_rank = ranks[:, :3], ranks[:, 3:4]
    for turn in range(3):
        planes = _blend_turn(planes, factors, (blend_ranks == turn) & (turn < hue_rank))
    if shift is not None:
        planes = _turn_hue(planes, shift)
    for turn in range(1, 4):
        planes = _blend_turn(planes, factors, (blend_ranks == turn) & (turn > hue_rank))
    return _to_images(planes)


def _blend_turn(planes: jax.Array, factors: jax.Array, due: jax.Array) -> jax.Array:
    """Applies the one blend that is due to each image, if any.

    Args:
      planes: f32[B, S, 3, S].
      factors: f32[B, 3], for brightness, contrast and saturation.
      due: bool[B, 3], at most one true in a row.

    Returns:
      f32[B, S, 3, S].
    """
    # Blending by a factor of 1 is exactly nothing.
    factor = jnp.where(jnp.any(due, axis=1), jnp.sum(jnp.where(due, factors, 0.0), axis=1), 1.0)
    return _blend(planes, factor, jnp.argmax(due, axis=1))


def _blend_images(images: jax.Array, factor: jax.Array, kind: int) -> jax.Array:
    kinds = jnp.full(factor.shape, kind)
    return _to_images(_blend(_to_planes(images), factor, kinds))


def _blend(planes: jax.Array, factor: jax.Array, kind: jax.Array) -> jax.Array:
    """Returns other + factor * (planes - other) as Pillow's `Image.blend`: clipped, then truncated.

    Args:
      planes: f32[B, S, 3, S].
      factor: f32[B].
      kind: i32[B], which `other`: black for brightness, the mean grey for contrast, each pixel's
        grey for saturation.

    Returns:
      f32[B, S, 3, S].
    """
    luma = _luma(planes)
    flat = jnp.where(kind == _CONTRAST, _rounded_mean(luma), 0.0)
    other = jnp.where((kind == _SATURATION)[:, None, None], luma, flat[:, None, None])[:, :, None]
    blended = other + factor[:, None, None, None] * (planes - other)
    return jnp.floor(jnp.clip(blended, 0.0, 255.0))


def _luma(planes: jax.Array) -> jax.Array:
    """Returns f32[B, S, S], the grey levels of f32[B, S, 3, S] (Pillow `Convert.c`, `L24`)."""
    weights = jnp.asarray([19595, 38470, 7471], jnp.int32)[None, None, :, None]
    # A sum over an axis, where three terms would do: XLA keeps its result, and does not compute all
    # that led to the planes once more for each channel that reads it.
    total = jnp.sum(planes.astype(jnp.int32) * weights, axis=2)
    return ((total + 32768) >> 16).astype(jnp.float32)


def _rounded_mean(luma: jax.Array) -> jax.Array:
    """Returns f32[B], the mean of f32[B, S, S] rounded to whole levels, halves up."""
    count = luma.shape[1] * luma.shape[2]
    # Integers: exact at any size up to 2000 x 2000, and four times faster than a float sum on CPU.
    total = jnp.sum(luma.astype(jnp.int32), axis=(1, 2))
    return ((2 * total + count) // (2 * count)).astype(jnp.float32)


def _turn_hue(planes: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns f32[B, S, 3, S] with the hue moved by `shift` f32[B] turns, through 8-bit HSV."""
    hue, saturation, value = _to_hsv(planes)
    # torchvision truncates the shift to 8 bits and lets the sum wrap.
    hue = hue + jnp.trunc(shift * 255.0)[:, None, None]
    hue = jnp.where(hue < 0, hue + 256.0, jnp.where(hue > 255, hue - 256.0, hue))
    return _from_hsv(hue, saturation, value)


def _to_hsv(planes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns hue, saturation and value f32[B, S, S], each in 0..255 (Pillow `Convert.c`)."""
    red, green, blue = planes[:, :, 0], planes[:, :, 1], planes[:, :, 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    blue_side = jnp.where(green == value, 2 * chroma + blue - red, 4 * chroma + red - green)
    sixths = jnp.where(red == value, green - blue, blue_side)
    sixths = jnp.where(sixths < 0, sixths + 6 * chroma, sixths)
    # Half a unit on top of a whole numerator keeps exact quotients from falling below.
    hue = jnp.floor((255 * sixths + 0.5) / (6 * jnp.maximum(chroma, 1.0)))
    saturation = jnp.floor((255 * chroma + 0.5) / jnp.maximum(value, 1.0))
    return hue, saturation, value


def _from_hsv(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    """Returns planes f32[B, S, 3, S] of hue, saturation and value f32[B, S, S] in 0..255.

    The closed form of Pillow's six sectors: red, green and blue are the same trapezoid of the hue,
    a third of a turn apart. A turn is 6 * 255 here.
    """
    channels = []
    for offset in (5, 3, 1):
        angle = 6 * hue + 255.0 * offset
        angle = angle - 1530.0 * jnp.floor((angle + 0.5) / 1530.0)
        depth = jnp.clip(jnp.minimum(angle, 1020.0 - angle), 0.0, 255.0)
        channels.append(jnp.floor(value - value * saturation * depth / 65025.0 + 0.5))
    return jnp.stack(channels, axis=2)


def _to_planes(images: jax.Array) -> jax.Array:
    """Returns f32[B, S, 3, S] from f32[B, S, S, 3]."""
    return jnp.swapaxes(images, 2, 3)


def _to_images(planes: jax.Array) -> jax.Array:
    """Returns f32[B, S, S, 3] from f32[B, S, 3, S]."""
    return jnp.swapaxes(planes, 2, 3)
