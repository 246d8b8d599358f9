"""RandAugment (Cubuk et al. 2020) as timm's `rand-mM-mstdS-inc1`, for a batch at once.

Every image gets two operations of 15, one after the other. Each image has its own, so a round is a
program that can be any of them: a movement of rows and columns, a table of 256 levels for each
channel, and a blend with the grey or the smoothed image. The parts that an image does not use leave
it as it is. A round costs three movements, a histogram, a look-up and a blend, not 15 operations.
"""

import jax
import jax.numpy as jnp

from moco_jax.data.augment import shears
from moco_jax.data.augment.color import (
    Channels,
    blend,
    channels,
    luma,
    pack,
    per_image,
    rounded_mean,
    unpack,
)
from moco_jax.data.augment.resampling import clip_levels
from moco_jax.parallel.platforms import by_platform

ROUNDS = 2
STRONGEST = 10.0  # magnitude
OPERATIONS = (
    *("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add"),
    *("color", "contrast", "brightness", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
)
NONE = len(OPERATIONS)  # the number of no operation
_NUMBERS = {name: number for number, name in enumerate(OPERATIONS)}


def draw(
    key: jax.Array, batch: int, magnitude: float, std: float, p: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (operations, magnitudes, signs) for `apply`, drawn as by timm.

    Args:
      key: a PRNG key.
      batch: B.
      magnitude, std: of the normal distribution of the magnitudes, which are clipped to 0..10.
      p: probability of each operation; otherwise it is `NONE`.

    Returns:
      i32[2, B], f32[2, B] and f32[2, B], the signs -1 or 1.
    """
    keys, shape = jax.random.split(key, 4), (ROUNDS, batch)
    operations = jax.random.randint(keys[0], shape, 0, NONE)
    applied = jax.random.uniform(keys[1], shape) < p
    magnitudes = jnp.clip(magnitude + std * jax.random.normal(keys[2], shape), 0.0, STRONGEST)
    return (
        jnp.where(applied, operations, NONE),
        magnitudes,
        jax.random.rademacher(keys[3], shape, float),
    )


def apply(
    planes: jax.Array,
    operations: jax.Array,
    magnitudes: jax.Array,
    signs: jax.Array,
    fill: tuple[int, int, int],
) -> jax.Array:
    """Returns uint8[B, S, 3, S] after the operations of all rounds.

    Args:
      planes: uint8[B, S, 3, S].
      operations: i32[rounds, B], numbers in `OPERATIONS`, or `NONE`.
      magnitudes: f32[rounds, B], in 0..10.
      signs: f32[rounds, B], of the movements and of the changes of colour, contrast, brightness
        and sharpness.
      fill: red, green and blue levels outside a moved image.
    """
    outside = jnp.int32(fill[0] | fill[1] << 8 | fill[2] << 16)

    def one(words, drawn):
        operation, magnitude, sign = drawn
        return _round(words, operation, magnitude, sign, outside), None

    words, _ = jax.lax.scan(one, pack(channels(planes)), (operations, magnitudes, signs))
    return jnp.stack(unpack(words), axis=2).astype(jnp.uint8)


def _round(words, operation, magnitude, sign, outside) -> jax.Array:
    """Returns packed images i32[B, S, S] after the operation i32[B] of each."""
    level = magnitude / STRONGEST
    drawn = {name: operation == number for name, number in _NUMBERS.items()}
    words = shears.warp(words, *_movements(drawn, level, sign, words.shape[1]), outside)
    # Not below .1, as timm has it; the sign says whether it falls or rises.
    factor = jnp.maximum(1.0 + 0.9 * level * sign, 0.1)
    rgb = unpack(words)
    levels = jnp.stack(rgb, axis=1).astype(jnp.int32).reshape(len(words), 3, -1)
    tables = _tables(drawn, level, factor, rgb, _histogram(levels))
    rgb = _looked_up(tables, levels).reshape(len(words), 3, *words.shape[1:])
    return jax.lax.optimization_barrier(
        pack(_blended(drawn, factor, [rgb[:, i] for i in range(3)]))
    )


def _movements(drawn, level, sign, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the arguments `first`, `down` and `last` of `shears.warp`."""
    only = lambda name, values: jnp.where(drawn[name][:, None], values, 0.0)  # noqa: E731
    sheared = shears.shear_x(0.3 * level * sign, size)
    moved = jnp.broadcast_to((0.45 * size * level * sign)[:, None], sheared.shape)
    rows, columns = shears.rotation(shears.MOST_DEGREES * level * sign, size)
    rows = only("rotate", rows)
    first = only("shear_x", sheared) + only("translate_x", moved) + rows
    down = only("shear_y", sheared) + only("translate_y", moved) + only("rotate", columns)
    return first, down, rows


def _tables(drawn, level, factor, rgb: Channels, histogram: jax.Array) -> jax.Array:
    """Returns f32[B, 3, 256], the new level of each level of each channel."""
    old = jnp.arange(256, dtype=jnp.float32)[None, None]
    each = lambda values: values[:, None, None]  # noqa: E731
    kept = 2.0 ** (8 - (4 - jnp.floor(4 * level)))
    threshold, added = 256 - jnp.floor(256 * level), jnp.floor(110 * level)
    blended = lambda other: jnp.floor(clip_levels(other + each(factor) * (old - other)))  # noqa: E731
    new = {
        "autocontrast": _autocontrast(histogram),
        "equalize": _equalize(histogram),
        "invert": 255 - old,
        "posterize": old - old % each(kept),
        "solarize": jnp.where(old < each(threshold), old, 255 - old),
        "solarize_add": jnp.where(old < 128, jnp.minimum(old + each(added), 255), old),
        "contrast": blended(each(rounded_mean(luma(rgb)))),
        "brightness": blended(0.0),
    }  # fmt: skip
    table = jnp.broadcast_to(old, histogram.shape)
    for name, values in new.items():
        table = jnp.where(each(drawn[name]), values, table)
    return table


def _autocontrast(histogram: jax.Array) -> jax.Array:
    """Returns tables f32[B, 3, 256] that stretch the levels to 0..255 (`ImageOps.autocontrast`)."""
    old = jnp.arange(256)[None, None]
    low = jnp.argmax(histogram > 0, axis=-1, keepdims=True)
    high = 255 - jnp.argmax(histogram[..., ::-1] > 0, axis=-1, keepdims=True)
    stretched = jnp.clip((old - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, old).astype(jnp.float32)


def _equalize(histogram: jax.Array) -> jax.Array:
    """Returns tables f32[B, 3, 256] that make the levels equally frequent (`ImageOps.equalize`)."""
    old = jnp.arange(256)[None, None]
    high = 255 - jnp.argmax(histogram[..., ::-1] > 0, axis=-1, keepdims=True)
    of_highest = jnp.take_along_axis(histogram, high, axis=-1)
    step = (histogram.sum(axis=-1, keepdims=True) - of_highest) // 255
    below = jnp.cumsum(histogram, axis=-1) - histogram
    equal = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, equal, old).astype(jnp.float32)


def _blended(drawn, factor, rgb: Channels) -> Channels:
    """Returns channels with changed colour (Pillow's `Color`) or sharpness (`Sharpness`)."""
    grey, color = luma(rgb), per_image(drawn["color"])
    factor = jnp.where(drawn["color"] | drawn["sharpness"], factor, 1.0)
    return [blend([x], factor, jnp.where(color, grey, _smooth(x)))[0] for x in rgb]


def _smooth(plane: jax.Array) -> jax.Array:
    """Returns f32[B, S, S], as Pillow's `ImageFilter.SMOOTH`, which leaves the border as it is."""
    around = plane
    for axis in (1, 2):
        around = around + jnp.roll(around, 1, axis) + jnp.roll(around, -1, axis)
    at = jnp.arange(plane.shape[1])
    inner = (at > 0) & (at < len(at) - 1)
    inner = inner[None, :, None] & inner[None, None, :]
    return jnp.where(inner, jnp.floor((around + 4 * plane) / 13 + 0.5), plane)


def _histogram(levels: jax.Array) -> jax.Array:
    """Returns i32[B, 3, 256], how often each level is in levels i32[B, 3, N]."""
    return by_platform(levels, default=_counted, gpu=_compared, tpu=_multiplied)


def _counted(levels: jax.Array) -> jax.Array:
    count = lambda row: jnp.zeros(256, jnp.int32).at[row].add(1)  # noqa: E731
    return jax.vmap(jax.vmap(count))(levels)


def _compared(levels: jax.Array) -> jax.Array:
    # A GPU compares every pixel with every level faster than it adds up by index.
    known = jnp.arange(256)[None, None, :, None]
    return (levels[:, :, None, :] == known).sum(axis=-1, dtype=jnp.int32)


def _multiplied(levels: jax.Array) -> jax.Array:
    # A TPU is fast at products only: counts of pairs of four high and four low bits.
    high, low = _halves(levels)
    counts = jnp.einsum("bchn,bcln->bchl", high, low, preferred_element_type=jnp.float32)
    return counts.reshape(*levels.shape[:2], 256).astype(jnp.int32)


def _halves(levels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the high and the low four bits as bfloat16[B, 3, 16, N], 1 at the value, else 0."""
    values = jnp.arange(16)[None, None, :, None]
    halves = (levels >> 4)[:, :, None], (levels & 15)[:, :, None]
    high, low = ((half == values).astype(jnp.bfloat16) for half in halves)
    return high, low


def _looked_up(tables: jax.Array, levels: jax.Array) -> jax.Array:
    """Returns f32[B, 3, N], the entries of tables f32[B, 3, 256] at levels i32[B, 3, N]."""
    indexed = lambda tables, levels: jnp.take_along_axis(tables, levels, axis=2)  # noqa: E731
    return by_platform(tables, levels, default=indexed, tpu=_selected)


def _selected(tables: jax.Array, levels: jax.Array) -> jax.Array:
    # A TPU reads slowly by index: a product takes the row of the high bits, a sum the low bits.
    high, low = _halves(levels)
    rows = tables.reshape(*tables.shape[:2], 16, 16).astype(jnp.bfloat16)  # levels are exact
    rows = jnp.einsum("bchl,bchn->bcln", rows, high)
    return jnp.where(low > 0, rows, 0).astype(jnp.float32).sum(axis=2)
