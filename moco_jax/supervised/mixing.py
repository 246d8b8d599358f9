"""Soft targets: label smoothing, mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019)."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict


def soften(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """Returns targets f32[B, C] of labels i32[B]; a fraction of each is spread over all classes."""
    return jax.nn.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, config: ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """Returns images [B, S, S, 3] and targets f32[B, C], mixed by the config's mixup and CutMix.

    Image i is mixed with image B - 1 - i; the order of a batch is random already. With both mixup
    and CutMix, each batch gets one of them with probability 1/2. This is timm's `Mixup` in its mode
    "batch", but for the boxes of CutMix: their sides are not rounded to even numbers of pixels.
    """
    draw, which = jax.random.split(key)
    mixed = mixup(draw, images, targets, config.mixup) if config.mixup else (images, targets)
    if not config.cutmix:
        return mixed
    cut = cutmix(draw, images, targets, config.cutmix)
    if not config.mixup:
        return cut
    chosen = jax.random.bernoulli(which)
    return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), mixed, cut)


def mixup(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Returns images and targets blended with their partners by one fraction for the batch."""
    fraction = jax.random.beta(key, alpha, alpha)
    blend = lambda x: (fraction * x + (1 - fraction) * x[::-1]).astype(x.dtype)  # noqa: E731
    return blend(images), blend(targets)


def cutmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Returns images with one box of their partners, and targets in proportion to its area."""
    fraction_key, place_key = jax.random.split(key)
    size = images.shape[1]
    half = size * jnp.sqrt(1 - jax.random.beta(fraction_key, alpha, alpha)) / 2
    centre = jax.random.uniform(place_key, (2,), maxval=size)
    along = jnp.arange(size) + 0.5
    inside = jnp.abs(along[None] - centre[:, None]) < half  # [2, S]
    box = inside[0][:, None] & inside[1][None, :]
    fraction = 1 - box.mean()
    images = jnp.where(box[None, :, :, None], images[::-1], images)
    return images, fraction * targets + (1 - fraction) * targets[::-1]
