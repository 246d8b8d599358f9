"""The random operations that a recipe may have after its crop.

Each operation takes a key and planes uint8[B, S, 3, S], and returns planes of the same shape. It
draws its parameters per image; `p` is the probability that an image is changed.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from moco_jax.data.augment import color, random_operations
from moco_jax.data.augment.blur import gaussian_blur


def random_apply(
    key: jax.Array, planes: jax.Array, op: Callable[[jax.Array, jax.Array], jax.Array], p: float
) -> jax.Array:
    """Returns planes with `op(key, planes)` applied to each image with probability `p`.

    It computes `op` for all images and then selects: a branch per image costs more on an
    accelerator. For a `p` of 0 or 1 it draws no choice.
    """
    if p <= 0:
        return planes
    apply_key, op_key = jax.random.split(key)
    changed = op(op_key, planes)
    if p >= 1:
        return changed
    applied = _choose(apply_key, planes.shape[0], p)
    return jnp.where(applied[:, None, None, None], changed, planes)


def _choose(key: jax.Array, batch: int, p: float) -> jax.Array:
    """Returns bool[B], each True with probability `p`."""
    return jax.random.uniform(key, (batch,)) < p


def color_jitter(
    key: jax.Array,
    planes: jax.Array,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    p: float = 1.0,
) -> jax.Array:
    """Returns uint8[B, S, 3, S] changed as by torchvision's `ColorJitter` with probability `p`.

    `color.draw_jitter` documents the strengths.
    """
    if p <= 0:
        return planes
    apply_key, op_key = jax.random.split(key)
    batch = planes.shape[0]
    applied = _choose(apply_key, batch, p)
    ranks, factors, shift = color.draw_jitter(
        op_key, batch, (brightness, contrast, saturation), hue
    )
    # A rank of -1 avoids a select afterwards, which would be another pass over memory.
    ranks = jnp.where(applied[:, None], ranks, -1)
    return color.apply_jitter(planes, ranks, factors, shift)


def grayscale(key: jax.Array, planes: jax.Array, *, p: float = 1.0) -> jax.Array:
    """Returns uint8[B, S, 3, S] converted to grey with probability `p`."""
    return random_apply(key, planes, lambda _, planes: color.grayscale(planes), p)


def solarize(
    key: jax.Array, planes: jax.Array, *, threshold: float = 128, p: float = 1.0
) -> jax.Array:
    """Returns uint8[B, S, 3, S] with levels >= `threshold` inverted with probability `p`."""
    return random_apply(key, planes, lambda _, planes: color.solarize(planes, threshold), p)


def blur(key: jax.Array, planes: jax.Array, *, sigma: Sequence[float], p: float = 1.0) -> jax.Array:
    """Returns uint8[B, S, 3, S] blurred with probability `p`; sigmas in pixels are uniform."""

    def op(key: jax.Array, planes: jax.Array) -> jax.Array:
        sigmas = jax.random.uniform(key, (planes.shape[0],), minval=sigma[0], maxval=sigma[1])
        return gaussian_blur(planes, sigmas)

    return random_apply(key, planes, op, p)


def flip(key: jax.Array, planes: jax.Array, *, p: float = 0.5) -> jax.Array:
    """Returns uint8[B, S, 3, S] mirrored left to right with probability `p`."""
    return random_apply(key, planes, lambda _, planes: planes[..., ::-1], p)


def rand_augment(
    key: jax.Array,
    planes: jax.Array,
    *,
    fill: tuple[int, int, int],
    magnitude: float,
    std: float = 0.0,
    p: float = 0.5,
) -> jax.Array:
    """Returns uint8[B, S, 3, S] after two operations of RandAugment, each with probability `p`.

    `random_operations.draw` documents `magnitude` and `std`. `fill` is the colour outside moved
    images.
    """
    if p <= 0:
        return planes
    drawn = random_operations.draw(key, len(planes), magnitude, std, p)
    return random_operations.apply(planes, *drawn, fill)


OPS: dict[str, Callable[..., jax.Array]] = {
    op.__name__: op for op in (color_jitter, grayscale, solarize, blur, flip, rand_augment)
}
