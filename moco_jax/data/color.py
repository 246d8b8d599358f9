"""Colour changes with the 8-bit arithmetic of Pillow, and torchvision's `ColorJitter` from them.

Pictures are planes, uint8[B, S, 3, S]. The float arithmetic is on whole numbers below 2**24
wherever Pillow's is on integers, so it is exact.
"""

import jax
import jax.numpy as jnp

from moco_jax.data.levels import cut_to_level, round_to_level

_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)


def brightness(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns uint8[B, S, 3, S] blended with black, as Pillow's `ImageEnhance.Brightness`.

    Args:
      planes: uint8[B, S, 3, S].
      factor: f32[B], 0 is black and 1 changes nothing.
    """
    return _blend(planes, factor, jnp.full(factor.shape, _BRIGHTNESS))


def contrast(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns uint8[B, S, 3, S] blended with their mean grey (`ImageEnhance.Contrast`).

    Args:
      planes: uint8[B, S, 3, S].
      factor: f32[B], 0 is uniform grey and 1 changes nothing.
    """
    return _blend(planes, factor, jnp.full(factor.shape, _CONTRAST))


def saturation(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns uint8[B, S, 3, S] blended with their grey version (`ImageEnhance.Color`).

    Args:
      planes: uint8[B, S, 3, S].
      factor: f32[B], 0 is grey and 1 changes nothing.
    """
    return _blend(planes, factor, jnp.full(factor.shape, _SATURATION))


def hue(planes: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns uint8[B, S, 3, S] with the hue turned (torchvision's `adjust_hue` on Pillow).

    It goes through Pillow's 8-bit HSV, so even a shift of 0 changes colours a little.

    Args:
      planes: uint8[B, S, 3, S].
      shift: f32[B] in [-.5, .5], in turns of the colour wheel.
    """
    return _turn_hue(planes, shift)


def grayscale(planes: jax.Array) -> jax.Array:
    """Returns the luma of planes in all channels, uint8[B, S, 3, S] (Pillow's `convert('L')`)."""
    return jnp.broadcast_to(_luma(planes)[:, :, None], planes.shape)


def solarize(planes: jax.Array, threshold: float = 128) -> jax.Array:
    """Returns uint8[B, S, 3, S] with levels from `threshold` on inverted (`ImageOps`)."""
    return jnp.where(planes.astype(jnp.float32) < threshold, planes, 255 - planes)


def color_jitter(
    key: jax.Array,
    planes: jax.Array,
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
      planes: uint8[B, S, 3, S].
      brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
      contrast: likewise.
      saturation: likewise.
      hue: the shift is uniform in [-hue, hue], in turns; 0 leaves the step out (as torchvision).

    Returns:
      uint8[B, S, 3, S].
    """
    strengths = (brightness, contrast, saturation)
    return apply_jitter(planes, *draw_jitter(key, planes.shape[0], strengths, hue))


def draw_jitter(
    key: jax.Array, batch: int, strengths: tuple[float, float, float], hue: float
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Draws what `color_jitter` does to each of B pictures.

    Args:
      key: a PRNG key.
      batch: B.
      strengths: of brightness, contrast and saturation, as `color_jitter` takes them.
      hue: likewise.

    Returns:
      (ranks, factors, shift), as `apply_jitter` takes them.
    """
    order_key, factor_key, hue_key = jax.random.split(key, 3)
    strength = jnp.asarray(strengths, jnp.float32)[None, :]
    lowest = jnp.maximum(1.0 - strength, 0.0)
    fraction = jax.random.uniform(factor_key, (batch, 3))
    factors = lowest + fraction * (1.0 + strength - lowest)
    shift = jax.random.uniform(hue_key, (batch,), minval=-hue, maxval=hue) if hue else None
    # The ranks of four uniform numbers are a uniform permutation.
    ranks = jnp.argsort(jax.random.uniform(order_key, (batch, 4)), axis=1)
    return ranks, factors, shift


def apply_jitter(
    planes: jax.Array, ranks: jax.Array, factors: jax.Array, shift: jax.Array | None
) -> jax.Array:
    """Applies the four changes of `color_jitter` to each picture in its own order.

    Args:
      planes: uint8[B, S, 3, S].
      ranks: i32[B, 4], the turn (0..3) at which brightness, contrast, saturation, hue come.
      factors: f32[B, 3], for brightness, contrast and saturation.
      shift: f32[B], for hue, or None to leave hue alone.

    Returns:
      uint8[B, S, 3, S].
    """
    # Hue costs most, so it runs once: between three blends for what comes before it in a picture's
    # order and three for what comes after, in place of four turns that each compute everything.
    blend_ranks, hue_rank = ranks[:, :3], ranks[:, 3:4]
    for turn in range(3):
        planes = _blend_turn(planes, factors, (blend_ranks == turn) & (turn < hue_rank))
    if shift is not None:
        planes = _turn_hue(planes, shift)
    for turn in range(1, 4):
        planes = _blend_turn(planes, factors, (blend_ranks == turn) & (turn > hue_rank))
    return planes


def _blend_turn(planes: jax.Array, factors: jax.Array, due: jax.Array) -> jax.Array:
    """Applies the one blend that is due to each image, if any.

    Args:
      planes: uint8[B, S, 3, S].
      factors: f32[B, 3], for brightness, contrast and saturation.
      due: bool[B, 3], at most one true in a row.

    Returns:
      uint8[B, S, 3, S].
    """
    # Blending by a factor of 1 is exactly nothing.
    factor = jnp.where(jnp.any(due, axis=1), jnp.sum(jnp.where(due, factors, 0.0), axis=1), 1.0)
    return _blend(planes, factor, jnp.argmax(due, axis=1))


def _blend(planes: jax.Array, factor: jax.Array, kind: jax.Array) -> jax.Array:
    """Returns other + factor * (planes - other) as Pillow's `Image.blend`: clipped, then truncated.

    Args:
      planes: uint8[B, S, 3, S].
      factor: f32[B].
      kind: i32[B], which `other`: black for brightness, the mean grey for contrast, each pixel's
        grey for saturation.

    Returns:
      uint8[B, S, 3, S].
    """
    luma = _luma(planes)
    flat = jnp.where(kind == _CONTRAST, _rounded_mean(luma), 0.0)
    planes = planes.astype(jnp.float32)
    other = jnp.where((kind == _SATURATION)[:, None, None], luma, flat[:, None, None])[:, :, None]
    blended = other + factor[:, None, None, None] * (planes - other)
    return cut_to_level(blended)


def _luma(planes: jax.Array) -> jax.Array:
    """Returns uint8[B, S, S], the grey levels of uint8[B, S, 3, S] (Pillow `Convert.c`, `L24`)."""
    weights = jnp.asarray([19595, 38470, 7471], jnp.int32)[None, None, :, None]
    # A sum over an axis, where three terms would do: XLA keeps its result, and does not compute all
    # that led to the planes once more for each channel that reads it.
    total = jnp.sum(planes.astype(jnp.int32) * weights, axis=2)
    return ((total + 32768) >> 16).astype(jnp.uint8)


def _rounded_mean(luma: jax.Array) -> jax.Array:
    """Returns f32[B], the mean of uint8[B, S, S] rounded to whole levels, halves up."""
    count = luma.shape[1] * luma.shape[2]
    # Integers: exact at any size up to 2000 x 2000, and four times faster than a float sum on CPU.
    total = jnp.sum(luma.astype(jnp.int32), axis=(1, 2))
    return ((2 * total + count) // (2 * count)).astype(jnp.float32)


def _turn_hue(planes: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns uint8[B, S, 3, S] with the hue moved by `shift` f32[B] turns, through 8-bit HSV."""
    hue, saturation, value = _to_hsv(planes)
    # torchvision truncates the shift to 8 bits and lets the sum wrap.
    hue = hue + jnp.trunc(shift * 255.0)[:, None, None]
    hue = jnp.where(hue < 0, hue + 256.0, jnp.where(hue > 255, hue - 256.0, hue))
    return _from_hsv(hue, saturation, value)


def _to_hsv(planes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns hue, saturation and value f32[B, S, S], each in 0..255 (Pillow `Convert.c`)."""
    red, green, blue = (planes[:, :, i].astype(jnp.float32) for i in range(3))
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
    """Returns planes uint8[B, S, 3, S] of hue, saturation and value f32[B, S, S] in 0..255.

    The closed form of Pillow's six sectors: red, green and blue are the same trapezoid of the hue,
    a third of a turn apart. A turn is 6 * 255 here.
    """
    channels = []
    for offset in (5, 3, 1):
        angle = 6 * hue + 255.0 * offset
        angle = angle - 1530.0 * jnp.floor((angle + 0.5) / 1530.0)
        depth = jnp.clip(jnp.minimum(angle, 1020.0 - angle), 0.0, 255.0)
        channels.append(round_to_level(value - value * saturation * depth / 65025.0))
    return jnp.stack(channels, axis=2)
