"""mIoU and pixel accuracy on a whole set of scenes, every pixel counted once."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.data.loading.order import in_order
from moco_jax.parallel.mesh import Layout
from moco_jax.parallel.pipeline import pipelined
from moco_jax.segmentation.network import FCN
from moco_jax.segmentation.streamed import SceneData
from moco_jax.segmentation.voc import IGNORED


class Scores(NamedTuple):
    """What is read off a confusion matrix.

    Attributes:
      miou: percent, the mean over the classes that occur.
      accuracy: percent of the pixels.
      ious: f64[C], percent; NaN for a class that does not occur.
    """

    miou: float
    accuracy: float
    ious: np.ndarray


def scores(confusion: np.ndarray) -> Scores:
    """Returns the scores of a confusion matrix int[C, C], rows the truth, columns the guess."""
    right, truth, guessed = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    if not truth.any():
        return Scores(np.nan, np.nan, np.full(len(truth), np.nan))
    union = truth + guessed - right
    ious = np.where(truth > 0, 100 * right / np.maximum(union, 1), np.nan)
    return Scores(float(np.nanmean(ious)), float(100 * right.sum() / truth.sum()), ious)


def confusion(guesses: jax.Array, masks: jax.Array, counted: jax.Array, classes: int) -> jax.Array:
    """Returns i32[C, C], how many pixels of each class (rows) are taken for each (columns).

    Args:
      guesses: i32[B, H, W].
      masks: uint8[B, H, W]; 255 is not counted.
      counted: bool[B], false for images that are not.
      classes: C.
    """
    valid = (masks != IGNORED) & counted[:, None, None]
    # A last bin takes what does not count. Counts are whole numbers, so they are exact.
    pairs = jnp.where(valid, masks.astype(jnp.int32) * classes + guesses, classes**2)
    count = jax.vmap(lambda x: jnp.bincount(x.ravel(), length=classes**2 + 1))
    return count(pairs)[:, :-1].sum(axis=0).reshape(classes, classes).astype(jnp.int32)


def make_confusion(
    data: SceneData, network: FCN, view: Callable, batch_size: int, layout: Layout
) -> Callable[[dict[str, Any]], np.ndarray]:
    """Returns a function: `params` and `batch_stats` -> the set's confusion matrix i64[C, C].

    Each image is looked at whole and at its own size. They lie on canvases of the largest one's
    size, filled with the mean (a departure from an image alone, at whose border a convolution
    deep in the network sees zeros; DeepLab does the same), so that one program serves all sizes.

    Args:
      data: the scenes.
      network: of the state.
      view: (uint8[B, H, W, 3], sizes) -> images.
      batch_size: B; divides by the devices.
      layout: where arrays lie.
    """
    classes = network.classifier.classes

    @layout.jit
    def count(variables, batch, real):
        images = layout.shard(view(*data.images({}, batch)))
        found: Any = network.apply(layout.replicate(variables), images, train=False)
        # The last batch is filled up with images that were counted already.
        counted = (jnp.arange(batch_size) < real) & data.readable(batch)
        return layout.replicate(confusion(found.argmax(axis=-1), batch["masks"], counted, classes))

    def dispatched(variables: dict[str, Any]) -> Iterator[jax.Array]:
        plan = in_order(np.arange(len(data), dtype=np.int32), batch_size)
        for i, batch in enumerate(data.batches(plan)):
            real = np.int32(min(batch_size, len(data) - i * batch_size))
            yield count(variables, batch, real)

    def whole(variables: dict[str, Any]) -> np.ndarray:
        total = np.zeros((classes, classes), np.int64)
        for counts in map(jax.device_get, pipelined(dispatched(variables))):
            total += counts
        return total

    return whole
