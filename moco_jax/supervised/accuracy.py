"""Top-1 and top-5 on a labelled data set; every image is counted once."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moco_jax.data.augment.views import evaluation_view
from moco_jax.data.loading.loader import Batches, DataSet
from moco_jax.data.loading.order import in_order
from moco_jax.parallel.mesh import Layout
from moco_jax.parallel.pipeline import pipelined
from moco_jax.supervised.start import Start
from moco_jax.supervised.step import encode, logits, normalized
from moco_jax.terminal import progress


class Scores(NamedTuple):
    """The accuracies of H heads.

    Attributes:
      top1: f64[H], percent.
      top5: f64[H], percent.
      loss: f64[H], mean cross-entropy; not finite for a head that is not finite.
      images: number of counted images; unreadable images are not counted.
    """

    top1: np.ndarray
    top5: np.ndarray
    loss: np.ndarray
    images: int


def counts(scores: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns f32[3, H]: numbers of top-1 hits and of top-5 hits, and the sum of the losses.

    Of classes with equal scores the first one ranks higher, as with argmax. Scores that are not
    finite are never a hit.

    Args:
      scores: f32[B, H, C].
      labels: i32[B].
      weights: f32[B], 1 for images that count, else 0.
    """
    chosen = jnp.broadcast_to(labels[:, None, None], (*scores.shape[:2], 1))
    own = jnp.take_along_axis(scores, chosen, axis=-1)
    earlier = jnp.arange(scores.shape[-1])[None, None, :] < labels[:, None, None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(axis=-1)
    finite = jnp.isfinite(scores).all(axis=-1)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, chosen[..., 0])
    weights = weights[:, None]
    # Not a product: the loss of an image that does not count may be NaN.
    masked = lambda x: jnp.where(weights > 0, x, 0.0).sum(axis=0)  # noqa: E731
    return jnp.stack([masked(finite & (rank < 1)), masked(finite & (rank < 5)), masked(losses)])


def make_count(start: Start, data: Batches, layout: Layout) -> Any:
    """Returns (variables, arrays, batch, real) -> (`counts` f32[3, H], i32[]), jitted.

    The variables are the `evaluated()` of a state. `arrays` has `images`, the arrays of the data,
    and `labels` i32[N]. The first `real` images of the batch count if they are readable; the second
    result is their number.
    """
    batch_size, c = start.config.batch_size, start.config.data
    dtype = jnp.dtype(start.config.dtype)
    view = evaluation_view(c.image_size, c.eval_resize, c.mean, c.std, dtype)

    @layout.jit
    def count(variables, arrays, batch, real):
        images = layout.shard(view(*data.images(arrays["images"], batch)))
        params = layout.replicate(variables["backbone"])
        features = encode(start.backbone, params, variables["batch_stats"], images)
        features, _ = normalized(variables["feature_stats"], features)
        labels = jnp.take(arrays["labels"], data.indices(batch))
        # The padding of the last batch was counted before.
        weights = (jnp.arange(batch_size) < real) & data.readable(batch)
        head = layout.replicate(variables["head"])
        sums = counts(logits(head, features), labels, weights.astype(jnp.float32))
        return layout.replicate((sums, weights.sum()))

    return count


def make_scores(start: Start, data: DataSet, layout: Layout) -> Callable[[dict[str, Any]], Scores]:
    """Returns a function: the `evaluated()` of a state -> `Scores` on labelled images."""
    batch_size, count = start.config.batch_size, make_count(start, data, layout)
    arrays = {"images": data.arrays, "labels": layout.put(data.labels, layout.replicated)}

    def dispatched(variables: dict[str, Any]) -> Iterator[tuple[jax.Array, jax.Array]]:
        indices = np.arange(len(data), dtype=np.int32)
        for i, batch in enumerate(data.batches(in_order(indices, batch_size))):
            real = np.int32(min(batch_size, len(data) - i * batch_size))
            yield count(variables, arrays, batch, real)

    def scores(variables: dict[str, Any]) -> Scores:
        results, batches = pipelined(dispatched(variables)), -(-len(data) // batch_size)
        shown = progress.items(
            map(jax.device_get, results), batches, "evaluating", unit="batches", first="compiling"
        )
        totals = list(shown)
        sums = np.stack([sums for sums, _ in totals]).astype(np.float64).sum(axis=0)
        images = sum(int(counted) for _, counted in totals)
        # The accuracy of a head whose loss overflows is meaningless.
        top1, top5 = np.where(np.isfinite(sums[2]), 100 * sums[:2] / images, 0.0)
        return Scores(top1, top5, sums[2] / images, images)

    return scores
