"""Computes mIoU and pixel accuracy over all scenes of a set."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.data.loading.loader import Batches
from moco_jax.data.loading.order import in_order
from moco_jax.parallel.mesh import Layout
from moco_jax.parallel.pipeline import pipelined
from moco_jax.segmentation.network import FCN
from moco_jax.segmentation.streamed import SceneData
from moco_jax.segmentation.voc import IGNORED
from moco_jax.terminal import progress


class Scores(NamedTuple):
    """Scores from a confusion matrix, in percent."""

    miou: float  # mean IoU of the classes that occur
    accuracy: float  # of the pixels
    ious: np.ndarray  # f64[C], IoU per class; NaN for a class that does not occur


def scores(confusion: np.ndarray) -> Scores:
    """Returns the scores of a confusion matrix int[C, C]: rows are labels, columns predictions."""
    right, labelled, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    if not labelled.any():
        return Scores(np.nan, np.nan, np.full(len(labelled), np.nan))
    union = labelled + predicted - right
    ious = np.where(labelled > 0, 100 * right / np.maximum(union, 1), np.nan)
    return Scores(float(np.nanmean(ious)), float(100 * right.sum() / labelled.sum()), ious)


def confusion(
    predictions: jax.Array, masks: jax.Array, counted: jax.Array, classes: int
) -> jax.Array:
    """Returns the confusion matrix i32[C, C]: pixels by label (row) and prediction (column).

    Args:
      predictions: i32[B, H, W].
      masks: uint8[B, H, W]; 255 is not counted.
      counted: bool[B], false for images that are not counted.
    """
    valid = (masks != IGNORED) & counted[:, None, None]
    # A last bin takes the pixels that are not counted.
    pairs = jnp.where(valid, masks.astype(jnp.int32) * classes + predictions, classes**2)
    count = jax.vmap(lambda x: jnp.bincount(x.ravel(), length=classes**2 + 1))
    return count(pairs)[:, :-1].sum(axis=0).reshape(classes, classes).astype(jnp.int32)


def make_count(data: Batches, network: FCN, view: Callable, batch_size: int, layout: Layout) -> Any:
    """Returns (variables, batch, real) -> confusion matrix i32[C, C] of a batch, jitted.

    The variables are `params` and `batch_stats`. The first `real` images of the batch count. It
    predicts whole images at their own sizes. The canvases have the largest image's size, so one
    program serves all sizes. Their padding is the mean pixel. This departs from an image without a
    canvas, where convolutions deep in the network see zeros at the border; DeepLab pads likewise.

    Args:
      data: access to the scenes.
      view: (uint8[B, H, W, 3], sizes) -> normalized images.
      batch_size: B, a multiple of the number of devices.
    """
    classes = network.classifier.classes

    @layout.jit
    def count(variables, batch, real):
        images = layout.shard(view(*data.images({}, batch)))
        scores: Any = network.apply(layout.replicate(variables), images, train=False)
        # The last batch is padded with an image that is counted elsewhere.
        counted = (jnp.arange(batch_size) < real) & data.readable(batch)
        return layout.replicate(confusion(scores.argmax(axis=-1), batch["masks"], counted, classes))

    return count


def make_confusion(
    data: SceneData, count: Any, batch_size: int, classes: int
) -> Callable[[dict[str, Any]], np.ndarray]:
    """Returns a function from `params` and `batch_stats` to the set's confusion matrix i64[C, C].

    `count` is that of `make_count` for these scenes.
    """

    def dispatched(variables: dict[str, Any]) -> Iterator[jax.Array]:
        plan = in_order(np.arange(len(data), dtype=np.int32), batch_size)
        for i, batch in enumerate(data.batches(plan)):
            real = np.int32(min(batch_size, len(data) - i * batch_size))
            yield count(variables, batch, real)

    def count_all(variables: dict[str, Any]) -> np.ndarray:
        counts = map(jax.device_get, pipelined(dispatched(variables)))
        batches = -(-len(data) // batch_size)
        shown = progress.items(counts, batches, "evaluating", unit="batches", first="compiling")
        return sum(shown, np.zeros((classes, classes), np.int64))

    return count_all
