"""Colour operations with the 8-bit arithmetic of Pillow, and torchvision's `ColorJitter`.

Images are planes, uint8[B, S, 3, S]. Internally, red, green and blue are three arrays f32[B, S, S]
of whole levels. Where Pillow uses integers, the floats are whole numbers below 2**24, so the
arithmetic is exact.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moco_jax.data.augment.resampling import clip_levels
from moco_jax.parallel.platforms import by_platform

# Red, green and blue, each f32[B, S, S].
Channels = Sequence[jax.Array]

# First bits of red, green and blue in a packed pixel.
_BITS = np.array([0, 8, 16], np.int32)


def grayscale(planes: jax.Array) -> jax.Array:
    """Returns uint8[B, S, 3, S] with the luma in all channels (Pillow's `convert('L')`)."""
    grey = luma(channels(planes)).astype(jnp.uint8)
    return jnp.broadcast_to(grey[:, :, None], planes.shape)


def solarize(planes: jax.Array, threshold: float = 128) -> jax.Array:
    """Returns uint8[B, S, 3, S] with levels >= `threshold` inverted (`ImageOps.solarize`)."""
    return jnp.where(planes.astype(jnp.float32) < threshold, planes, 255 - planes)


def draw_jitter(
    key: jax.Array, batch: int, strengths: tuple[float, float, float], hue: float
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns (ranks, factors, shift) for `apply_jitter`, drawn as torchvision's `ColorJitter`.

    All 24 orders of the changes are equally likely, and every image has its own.

    Args:
      key: a PRNG key.
      batch: B.
      strengths: brightness, contrast and saturation; the factor of a strength s is uniform in
        [max(0, 1 - s), 1 + s].
      hue: the shift is uniform in [-hue, hue], in turns; 0 skips the change, as torchvision.
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
    """Returns uint8[B, S, 3, S] with four changes, each image in its own order.

    Brightness blends with black, contrast with the mean grey and saturation with the grey version
    (Pillow's `ImageEnhance`). Hue is torchvision's `adjust_hue` on Pillow images: the conversion to
    8-bit HSV and back changes colours a little, even for a shift of 0.

    Args:
      planes: uint8[B, S, 3, S].
      ranks: i32[B, 4], positions (0..3) of brightness, contrast, saturation and hue in the order;
        -1 skips a change.
      factors: f32[B, 3], for brightness, contrast and saturation; 1 changes nothing.
      shift: f32[B] in [-.5, .5], of hue in turns of the colour wheel; None skips hue.
    """
    # The two rounds pass one packed word per pixel, so that XLA computes it once. Otherwise XLA
    # recomputes everything before a pixel for each channel and each use.
    words = pack(channels(planes))
    drawn = (ranks, factors) if shift is None else (ranks, factors, shift)
    words = by_platform(words, *drawn, default=_looped, gpu=_unrolled, tpu=_unrolled)
    return ((words[:, :, None, :] >> _BITS[None, None, :, None]) & 255).astype(jnp.uint8)


def _looped(words: jax.Array, *drawn: jax.Array) -> jax.Array:
    return lax.fori_loop(0, 2, lambda number, words: _round(number, words, *drawn), words)


def _unrolled(words: jax.Array, *drawn: jax.Array) -> jax.Array:
    """Runs both rounds without a loop: a loop is slower on accelerators.

    CPUs ignore the barriers, so they need the loop.
    """
    for number in (0, 1):
        words = _round(number, lax.optimization_barrier(words), *drawn)
    return lax.optimization_barrier(words)


def _round(
    number: jax.Array | int,
    words: jax.Array,
    ranks: jax.Array,
    factors: jax.Array,
    shift: jax.Array | None = None,
) -> jax.Array:
    """Returns packed images i32[B, S, S] after a round; the other arguments as in `apply_jitter`.

    Round 0 applies the changes before contrast, round 1 contrast and the changes after it. Only
    contrast depends on more than one pixel, so each round is one pass over memory.
    """
    contrast_rank, hue_rank = ranks[:, 1:2], ranks[:, 3:4]
    due = jnp.where(number == 0, ranks < contrast_rank, ranks >= contrast_rank) & (ranks >= 0)
    # A factor of 1 changes nothing, exactly.
    factors = jnp.where(due[:, :3], factors, 1.0)
    brightness_first = ranks[:, 0] < ranks[:, 2]
    rgb = unpack(words)
    rgb = blend(rgb, factors[:, 1], per_image(rounded_mean(luma(rgb))))
    before_hue = jnp.where(ranks[:, :3] < hue_rank, factors, 1.0)
    rgb = _brighten_and_saturate(rgb, before_hue, brightness_first)
    if shift is not None:
        shifted = _shift_hue(rgb, shift)
        rgb = [jnp.where(per_image(due[:, 3]), *pair) for pair in zip(shifted, rgb, strict=True)]
    after_hue = jnp.where(ranks[:, :3] > hue_rank, factors, 1.0)
    return pack(_brighten_and_saturate(rgb, after_hue, brightness_first))


def _brighten_and_saturate(
    rgb: Channels, factors: jax.Array, brightness_first: jax.Array
) -> Channels:
    """Returns whole levels blended by factors 0 and 2 of f32[B, 3]; bool[B] gives the order."""
    rgb = blend(rgb, jnp.where(brightness_first, factors[:, 0], 1.0), 0.0)
    rgb = blend(rgb, factors[:, 2], luma(rgb))
    return blend(rgb, jnp.where(brightness_first, 1.0, factors[:, 0]), 0.0)


def blend(rgb: Channels, factor: jax.Array, other: jax.Array | float) -> Channels:
    """Returns other + factor * (rgb - other), clipped and truncated as Pillow's `Image.blend`.

    `factor` is f32[B]; `other` is black for brightness, the mean grey for contrast and the grey of
    each pixel for saturation. All levels are whole.
    """
    return [jnp.floor(clip_levels(other + per_image(factor) * (x - other))) for x in rgb]


def luma(rgb: Channels) -> jax.Array:
    """Returns the grey levels f32[B, S, S] of three f32[B, S, S] (Pillow `Convert.c`, `L24`)."""
    red, green, blue = rgb
    total = 19595.0 * red + 38470.0 * green + 7471.0 * blue + 32768.0
    return jnp.floor(total / 65536.0)


def rounded_mean(luma: jax.Array) -> jax.Array:
    """Returns f32[B], the means of whole levels f32[B, S, S], rounded half up to whole levels."""
    count = luma.shape[1] * luma.shape[2]
    # Integers are exact for images up to 2000 x 2000.
    total = jnp.sum(luma.astype(jnp.int32), axis=(1, 2))
    return ((2 * total + count) // (2 * count)).astype(jnp.float32)


def _shift_hue(rgb: Channels, shift: jax.Array) -> Channels:
    """Returns whole levels with the hue shifted by `shift` f32[B] turns, in 8-bit HSV."""
    hue, saturation, value = _to_hsv(rgb)
    # torchvision truncates the shift to 8 bits, and the sum wraps around.
    hue = hue + per_image(jnp.mod(jnp.trunc(shift * 255.0), 256.0))
    return _from_hsv(jnp.where(hue > 255, hue - 256.0, hue), saturation, value)


def _to_hsv(rgb: Channels) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns hue, saturation and value f32[B, S, S], each in 0..255 (Pillow `Convert.c`)."""
    red, green, blue = rgb
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    blue_side = jnp.where(green == value, 2 * chroma + blue - red, 4 * chroma + red - green)
    sixths = jnp.where(red == value, green - blue, blue_side)
    sixths = jnp.where(sixths < 0, sixths + 6 * chroma, sixths)
    # Adding half a unit to the whole numerator keeps exact quotients from rounding down.
    hue = jnp.floor((255 * sixths + 0.5) / (6 * jnp.maximum(chroma, 1.0)))
    saturation = jnp.floor((255 * chroma + 0.5) / jnp.maximum(value, 1.0))
    return hue, saturation, value


def _from_hsv(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> Channels:
    """Returns red, green and blue f32[B, S, S] from hue, saturation and value, all in 0..255.

    This is the closed form of Pillow's six sectors. The distance of a channel below `value` is a
    trapezoid function of the hue. The three channels are a third of a turn apart; a turn is
    6 * 255 here.
    """
    angle = 6 * hue
    depths = (
        510.0 - jnp.abs(angle - 765.0),
        jnp.abs(angle - 510.0) - 255.0,
        jnp.abs(angle - 1020.0) - 255.0,
    )
    chroma = value * saturation
    return [jnp.floor(value - chroma * clip_levels(d) / 65025.0 + 0.5) for d in depths]


def channels(planes: jax.Array) -> Channels:
    """Returns red, green and blue f32[B, S, S] from planes uint8[B, S, 3, S]."""
    return [planes[:, :, channel].astype(jnp.float32) for channel in range(3)]


def pack(rgb: Channels) -> jax.Array:
    """Returns i32[B, S, S], one word per pixel, from whole levels f32[B, S, S]."""
    red, green, blue = (channel.astype(jnp.int32) for channel in rgb)
    return red | (green << 8) | (blue << 16)


def unpack(words: jax.Array) -> Channels:
    """Returns red, green and blue f32[B, S, S] from packed pixels i32[B, S, S]."""
    return [((words >> bit) & 255).astype(jnp.float32) for bit in _BITS]


def per_image(values: jax.Array) -> jax.Array:
    """Returns [B, 1, 1] from [B], to broadcast one value to all pixels of an image."""
    return values[:, None, None]
