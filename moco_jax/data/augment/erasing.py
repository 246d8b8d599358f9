"""Random erasing (Zhong et al. 2020) as timm's `RandomErasing` with `mode="pixel"`."""

import jax
import jax.numpy as jnp

_TRIES = 10
_AREA = (0.02, 1 / 3)  # fractions of the image
_RATIO = (0.3, 1 / 0.3)  # height / width


def erase(key: jax.Array, images: jax.Array, *, p: float = 0.25) -> jax.Array:
    """Returns normalised images [B, S, S, 3], each with probability `p` with a box of noise.

    Each pixel and channel of the box is drawn from N(0, 1).
    """
    if p <= 0:
        return images
    noise_key, box_key = jax.random.split(key)
    size = images.shape[1]
    box = boxes(box_key, len(images), size, p)
    at = jnp.arange(size)[None]
    rows = (at >= box[:, 0:1]) & (at < box[:, 0:1] + box[:, 2:3])
    columns = (at >= box[:, 1:2]) & (at < box[:, 1:2] + box[:, 3:4])
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    inside = rows[:, :, None] & columns[:, None, :]
    return jnp.where(inside[..., None], noise, images)


def boxes(key: jax.Array, batch: int, size: int, p: float) -> jax.Array:
    """Returns i32[B, 4]: top, left, height and width in pixels; height 0 erases nothing.

    It draws ten boxes of uniform area and log-uniform aspect ratio, and places the first that is
    smaller than the image uniformly. If there is none, nothing is erased.

    Args:
      key: a PRNG key.
      batch: B.
      size: S, side of the images in pixels.
      p: probability of a box.
    """
    apply_key, area_key, ratio_key, place_key = jax.random.split(key, 4)
    shape = (batch, _TRIES)
    areas = jax.random.uniform(area_key, shape, minval=_AREA[0], maxval=_AREA[1]) * size**2
    low, high = jnp.log(jnp.asarray(_RATIO, jnp.float32))
    ratios = jnp.exp(jax.random.uniform(ratio_key, shape, minval=low, maxval=high))
    tried = jnp.round(jnp.sqrt(jnp.stack([areas * ratios, areas / ratios], axis=-1)))
    fits = jnp.all(tried < size, axis=-1)
    first = fits & (jnp.cumsum(fits, axis=1) == 1)
    first = first & (jax.random.uniform(apply_key, (batch, 1)) < p)
    sides = jnp.sum(jnp.where(first[:, :, None], tried, 0.0), axis=1).astype(jnp.int32)
    corner = jax.random.uniform(place_key, (batch, 2)) * (size - sides + 1)
    corner = jnp.minimum(corner.astype(jnp.int32), size - sides)
    return jnp.concatenate([corner, sides], axis=1)
