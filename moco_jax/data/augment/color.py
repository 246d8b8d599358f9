"""Colour changes with the 8-bit arithmetic of Pillow, and torchvision's `ColorJitter` from them.

Images are planes, uint8[B, S, 3, S]. Inside, red, green and blue are three arrays of whole levels
f32[B, S, S]. The float arithmetic is on whole numbers below 2**24 wherever Pillow's is on integers,
so it is exact.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moco_jax.data.augment.resampling import clip_levels
from moco_jax.parallel.platforms import by_platform

# Red, green and blue.
Channels = Sequence[jax.Array]

# Where red, green and blue lie in a packed pixel.
_BITS = np.array([0, 8, 16], np.int32)


def brightness(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns uint8[B, S, 3, S] blended with black, as Pillow's `ImageEnhance.Brightness`.

    Args:
      planes: uint8[B, S, 3, S].
      factor: f32[B], 0 is black and 1 changes nothing.
    """
    return _to_planes(_blend(_channels(planes), factor, 0.0))


def contrast(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns uint8[B, S, 3, S] blended with their mean grey (`ImageEnhance.Contrast`).

    Args:
      planes: uint8[B, S, 3, S].
      factor: f32[B], 0 is uniform grey and 1 changes nothing.
    """
    rgb = _channels(planes)
    return _to_planes(_blend(rgb, factor, _each(_rounded_mean(_luma(rgb)))))


def saturation(planes: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns uint8[B, S, 3, S] blended with their grey version (`ImageEnhance.Color`).

    Args:
      planes: uint8[B, S, 3, S].
      factor: f32[B], 0 is grey and 1 changes nothing.
    """
    rgb = _channels(planes)
    return _to_planes(_blend(rgb, factor, _luma(rgb)))


def hue(planes: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns uint8[B, S, 3, S] with the hue turned (torchvision's `adjust_hue` on Pillow).

    It goes through Pillow's 8-bit HSV, so even a shift of 0 changes colours a little.

    Args:
      planes: uint8[B, S, 3, S].
      shift: f32[B] in [-.5, .5], in turns of the colour wheel.
    """
    return _to_planes(_turn_hue(_channels(planes), shift))


def grayscale(planes: jax.Array) -> jax.Array:
    """Returns the luma of planes in all channels, uint8[B, S, 3, S] (Pillow's `convert('L')`)."""
    luma = _luma(_channels(planes)).astype(jnp.uint8)
    return jnp.broadcast_to(luma[:, :, None], planes.shape)


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
    applied: jax.Array | None = None,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue, in an order of its own for each image.

    Distributed as torchvision's `ColorJitter`: all 24 orders are equally likely.

    Args:
      key: a PRNG key.
      planes: uint8[B, S, 3, S].
      brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
      contrast: likewise.
      saturation: likewise.
      hue: the shift is uniform in [-hue, hue], in turns; 0 leaves the step out (as torchvision).
      applied: bool[B], which images are changed; None for all of them.

    Returns:
      uint8[B, S, 3, S].
    """
    strengths = (brightness, contrast, saturation)
    ranks, factors, shift = draw_jitter(key, planes.shape[0], strengths, hue)
    if applied is not None:
        ranks = jnp.where(applied[:, None], ranks, -1)
    return apply_jitter(planes, ranks, factors, shift)


def draw_jitter(
    key: jax.Array, batch: int, strengths: tuple[float, float, float], hue: float
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Draws what `color_jitter` does to each of B images.

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
    """Applies the four changes of `color_jitter` to each image in its own order.

    Args:
      planes: uint8[B, S, 3, S].
      ranks: i32[B, 4], the turn (0..3) at which brightness, contrast, saturation, hue come; -1 for
        one that is left out.
      factors: f32[B, 3], for brightness, contrast and saturation.
      shift: f32[B], for hue, or None to leave hue alone.

    Returns:
      uint8[B, S, 3, S].
    """
    # What goes from round to round is a word a pixel, one array, that is to be computed once: left
    # to itself XLA computes all that led to a pixel again for each channel and for each use.
    words = _pack(_channels(planes))
    drawn = (ranks, factors) if shift is None else (ranks, factors, shift)
    words = by_platform(words, *drawn, default=_in_a_loop, gpu=_straight_on, tpu=_straight_on)
    return ((words[:, :, None, :] >> _BITS[None, None, :, None]) & 255).astype(jnp.uint8)


def _in_a_loop(
    words: jax.Array, ranks: jax.Array, factors: jax.Array, shift: jax.Array | None = None
) -> jax.Array:
    return lax.fori_loop(0, 2, partial(_round, ranks, factors, shift), words)


def _straight_on(
    words: jax.Array, ranks: jax.Array, factors: jax.Array, shift: jax.Array | None = None
) -> jax.Array:
    """Does without the loop, which costs an accelerator more; CPUs ignore the barriers."""
    for number in (0, 1):
        words = _round(ranks, factors, shift, number, lax.optimization_barrier(words))
    return lax.optimization_barrier(words)


def _round(
    ranks: jax.Array,
    factors: jax.Array,
    shift: jax.Array | None,
    number: jax.Array | int,
    words: jax.Array,
) -> jax.Array:
    """Applies to packed images what comes before contrast, or contrast and what comes after it.

    Only contrast needs more of an image than a pixel: each of the two is one pass over memory.

    Args:
      ranks: i32[B, 4], as `apply_jitter` takes them.
      factors: f32[B, 3], likewise.
      shift: f32[B] or None, likewise.
      number: 0 for the round before contrast, 1 for the one from contrast on.
      words: i32[B, S, S].

    Returns:
      i32[B, S, S].
    """
    contrast_rank, hue_rank = ranks[:, 1:2], ranks[:, 3:4]
    due = jnp.where(number == 0, ranks < contrast_rank, ranks >= contrast_rank) & (ranks >= 0)
    # Blending by a factor of 1 is exactly nothing.
    factors = jnp.where(due[:, :3], factors, 1.0)
    brightness_first = ranks[:, 0] < ranks[:, 2]
    rgb = _unpack(words)
    rgb = _blend(rgb, factors[:, 1], _each(_rounded_mean(_luma(rgb))))
    before_hue = jnp.where(ranks[:, :3] < hue_rank, factors, 1.0)
    rgb = _brighten_and_saturate(rgb, before_hue, brightness_first)
    if shift is not None:
        turned = _turn_hue(rgb, shift)
        rgb = [jnp.where(_each(due[:, 3]), *pair) for pair in zip(turned, rgb, strict=True)]
    after_hue = jnp.where(ranks[:, :3] > hue_rank, factors, 1.0)
    return _pack(_brighten_and_saturate(rgb, after_hue, brightness_first))


def _brighten_and_saturate(
    rgb: Channels, factors: jax.Array, brightness_first: jax.Array
) -> Channels:
    """Returns whole levels blended by columns 0 and 2 of f32[B, 3], in an order bool[B]."""
    rgb = _blend(rgb, jnp.where(brightness_first, factors[:, 0], 1.0), 0.0)
    rgb = _blend(rgb, factors[:, 2], _luma(rgb))
    return _blend(rgb, jnp.where(brightness_first, 1.0, factors[:, 0]), 0.0)


def _blend(rgb: Channels, factor: jax.Array, other: jax.Array | float) -> Channels:
    """Returns other + factor * (rgb - other) as Pillow's `Image.blend`: clipped, then truncated.

    Args:
      rgb: three f32[B, S, S], whole levels.
      factor: f32[B].
      other: broadcastable to f32[B, S, S], whole levels: black for brightness, the mean grey for
        contrast, each pixel's grey for saturation.

    Returns:
      Three f32[B, S, S], whole levels.
    """
    return [jnp.floor(clip_levels(other + _each(factor) * (x - other))) for x in rgb]


def _luma(rgb: Channels) -> jax.Array:
    """Returns the grey levels f32[B, S, S] of three f32[B, S, S] (Pillow `Convert.c`, `L24`)."""
    red, green, blue = rgb
    total = 19595.0 * red + 38470.0 * green + 7471.0 * blue + 32768.0
    return jnp.floor(total / 65536.0)


def _rounded_mean(luma: jax.Array) -> jax.Array:
    """Returns f32[B], the mean of whole levels f32[B, S, S] rounded to whole ones, halves up."""
    count = luma.shape[1] * luma.shape[2]
    # Integers: exact at any size up to 2000 x 2000.
    total = jnp.sum(luma.astype(jnp.int32), axis=(1, 2))
    return ((2 * total + count) // (2 * count)).astype(jnp.float32)


def _turn_hue(rgb: Channels, shift: jax.Array) -> Channels:
    """Returns whole levels with the hue moved by `shift` f32[B] turns, through 8-bit HSV."""
    hue, saturation, value = _to_hsv(rgb)
    # torchvision truncates the shift to 8 bits and lets the sum wrap.
    hue = hue + _each(jnp.mod(jnp.trunc(shift * 255.0), 256.0))
    return _from_hsv(jnp.where(hue > 255, hue - 256.0, hue), saturation, value)


def _to_hsv(rgb: Channels) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns hue, saturation and value f32[B, S, S], each in 0..255 (Pillow `Convert.c`)."""
    red, green, blue = rgb
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    blue_side = jnp.where(green == value, 2 * chroma + blue - red, 4 * chroma + red - green)
    sixths = jnp.where(red == value, green - blue, blue_side)
    sixths = jnp.where(sixths < 0, sixths + 6 * chroma, sixths)
    # Half a unit on top of a whole numerator keeps exact quotients from falling below.
    hue = jnp.floor((255 * sixths + 0.5) / (6 * jnp.maximum(chroma, 1.0)))
    saturation = jnp.floor((255 * chroma + 0.5) / jnp.maximum(value, 1.0))
    return hue, saturation, value


def _from_hsv(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> Channels:
    """Returns red, green and blue f32[B, S, S] of hue, saturation and value, all in 0..255.

    The closed form of Pillow's six sectors: how far a channel falls below the value is a trapezoid
    of the hue, and the three are a third of a turn apart. A turn is 6 * 255 here.
    """
    angle = 6 * hue
    depths = (
        510.0 - jnp.abs(angle - 765.0),
        jnp.abs(angle - 510.0) - 255.0,
        jnp.abs(angle - 1020.0) - 255.0,
    )
    chroma = value * saturation
    return [jnp.floor(value - chroma * clip_levels(d) / 65025.0 + 0.5) for d in depths]


def _channels(planes: jax.Array) -> Channels:
    """Returns red, green and blue f32[B, S, S] of planes uint8[B, S, 3, S]."""
    return [planes[:, :, channel].astype(jnp.float32) for channel in range(3)]


def _to_planes(rgb: Channels) -> jax.Array:
    """Returns uint8[B, S, 3, S] of red, green and blue f32[B, S, S]."""
    return jnp.stack([channel.astype(jnp.uint8) for channel in rgb], axis=2)


def _pack(rgb: Channels) -> jax.Array:
    """Returns i32[B, S, S], a pixel a word, of whole levels f32[B, S, S]."""
    red, green, blue = (channel.astype(jnp.int32) for channel in rgb)
    return red | (green << 8) | (blue << 16)


def _unpack(words: jax.Array) -> Channels:
    """Returns red, green and blue f32[B, S, S] of i32[B, S, S]."""
    return [((words >> bit) & 255).astype(jnp.float32) for bit in _BITS]


def _each(per_image: jax.Array) -> jax.Array:
    """Returns [B, 1, 1] of [B], one value for all pixels of an image."""
    return per_image[:, None, None]
