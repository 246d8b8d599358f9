"""Top-1 and top-5 on a whole labelled data set, every image counted once."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moco_jax.data.loading.loader import DataSet
from moco_jax.data.loading.order import in_order
from moco_jax.models.resnet import ResNet
from moco_jax.parallel.mesh import Layout
from moco_jax.parallel.pipeline import pipelined
from moco_jax.supervised.step import encode, logits


class Scores(NamedTuple):
    """What H heads reach, f64[H] each.

    Attributes:
      top1: percent.
      top5: percent.
      loss: mean cross-entropy; not finite for a head that is not.
      images: that were counted; what can't be read is not.
    """

    top1: np.ndarray
    top5: np.ndarray
    loss: np.ndarray
    images: int


def counts(scores: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns f32[3, H]: right by the first guess, by the first five, and summed losses.

    Of equal scores the first class goes first, as with argmax; a head that is not finite is never
    right.

    Args:
      scores: f32[B, H, C].
      labels: i32[B].
      weights: f32[B], 0 for what doesn't count.
    """
    chosen = jnp.broadcast_to(labels[:, None, None], (*scores.shape[:2], 1))
    own = jnp.take_along_axis(scores, chosen, axis=-1)
    earlier = jnp.arange(scores.shape[-1])[None, None, :] < labels[:, None, None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(axis=-1)
    finite = jnp.isfinite(scores).all(axis=-1)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, chosen[..., 0])
    weights = weights[:, None]
    # Of what doesn't count not even a NaN does.
    masked = lambda x: jnp.where(weights > 0, x, 0.0).sum(axis=0)  # noqa: E731
    return jnp.stack([masked(finite & (rank < 1)), masked(finite & (rank < 5)), masked(losses)])


def make_scores(
    data: DataSet, arrays: Any, backbone: ResNet, view: Callable, batch_size: int, layout: Layout
) -> Callable[[dict[str, Any]], Scores]:
    """Returns a function of a state's `evaluated()`.

    Args:
      data: the images.
      arrays: `images`, the data set's arrays, and `labels` i32[N].
      backbone: of the encoder.
      view: (uint8[B, H, W, 3], sizes) -> images.
      batch_size: B; divides by the devices.
      layout: where arrays lie.
    """

    @layout.jit
    def count(variables, arrays, batch, real):
        images = layout.shard(view(*data.images(arrays["images"], batch)))
        params = layout.replicate(variables["backbone"])
        features = encode(backbone, params, variables["batch_stats"], images)
        labels = jnp.take(arrays["labels"], data.indices(batch))
        # The last batch is filled up with images that were counted already.
        weights = (jnp.arange(batch_size) < real) & data.readable(batch)
        head = layout.replicate(variables["head"])
        sums = counts(logits(head, features), labels, weights.astype(jnp.float32))
        return layout.replicate((sums, weights.sum()))

    def dispatched(variables: dict[str, Any]) -> Iterator[tuple[jax.Array, jax.Array]]:
        everything = np.arange(len(data), dtype=np.int32)
        for i, batch in enumerate(data.batches(in_order(everything, batch_size))):
            real = np.int32(min(batch_size, len(data) - i * batch_size))
            yield count(variables, arrays, batch, real)

    def scores(variables: dict[str, Any]) -> Scores:
        totals = list(map(jax.device_get, pipelined(dispatched(variables))))
        sums = np.stack([sums for sums, _ in totals]).astype(np.float64).sum(axis=0)
        images = sum(int(counted) for _, counted in totals)
        # An overflow in a head's loss makes its guesses worthless, right or wrong.
        right = np.where(np.isfinite(sums[2]), 100 * sums[:2] / images, 0.0)
        return Scores(right[0], right[1], sums[2] / images, images)

    return scores
