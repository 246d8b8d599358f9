"""The kNN monitor of a pretraining run: whether the features separate the classes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.augment.views import evaluation_view
from moco_jax.data.loading.loader import DataSet
from moco_jax.data.loading.order import subset
from moco_jax.data.sources.source import NO_LABEL
from moco_jax.encoders.features import Encode, make_encode, make_extract
from moco_jax.encoders.votes import knn_top1
from moco_jax.parallel.mesh import Layout

_LARGEST_SIDE = 32  # pixels; larger images are reduced to this before pixels are compared


class Rows(NamedTuple):
    """Features of readable images, and their labels.

    Attributes:
      queries: f32[M, F], of held-out images.
      query_labels: i32[M].
      bank: f32[N, F], of training images with a label.
      bank_labels: i32[N].
    """

    queries: np.ndarray
    query_labels: np.ndarray
    bank: np.ndarray
    bank_labels: np.ndarray


def _labelled(data: DataSet) -> np.ndarray:
    """Returns the indices of the images that have a label."""
    assert data.labels is not None
    return np.flatnonzero(data.labels != NO_LABEL)


def make_pixels(config: ConfigDict, layout: Layout) -> Encode:
    """Returns (nothing, uint8[B, H, W, 3], sizes i32[B, 2]) -> pixels f32[B, S * S * 3], jitted."""
    data = config.data
    side = min(_LARGEST_SIDE, data.image_size)
    resize = round(side * data.eval_resize / data.image_size)
    view = evaluation_view(side, resize, data.mean, data.std)

    @jax.jit
    def pixels(variables, images, sizes):
        x = view(images, sizes)
        return layout.shard(x.reshape(len(x), -1))

    return pixels


class KnnMonitor:
    """Measures kNN top-1 on held-out labelled images.

    Attributes:
      train: the images that are neighbours.
      test: the images that are classified.
      classified: the number of readable images in the last measurement.
      k: the number of neighbours in the last measurement.
    """

    def __init__(
        self, config: ConfigDict, encoder: nn.Module, train: DataSet, test: DataSet, layout: Layout
    ):
        self._config, self._layout = config, layout
        self.train, self.test = train, test
        self.classified = self.k = 0
        encode = make_encode(config, encoder, config.knn.features, layout)
        self._encoded = self._make_rows(encode)

    def limits(self) -> Iterator[str]:
        """Yields a line for each number that is smaller than asked or than the data set."""
        knn = self._config.knn
        labelled = len(_labelled(self.train))
        bank = min(knn.bank or labelled, labelled)
        queries = min(knn.queries or len(self.test), len(self.test))
        if labelled < len(self.train):
            yield f"kNN: {labelled} of the {len(self.train)} training images have a label"
        if bank < labelled:
            yield f"kNN: {bank} of the {labelled} training images are neighbours (knn.bank)"
        if queries < len(self.test):
            yield f"kNN: {queries} of the {len(self.test)} test images are classified (knn.queries)"

    def encoded(self, params, batch_stats) -> Rows:
        """Returns the features of the encoder with these parameters."""
        return self._encoded({"params": params, "batch_stats": batch_stats})

    def top1(self, rows: Rows) -> float:
        """Returns top-1 in percent."""
        knn = self._config.knn
        self.classified, self.k = len(rows.queries), min(knn.k, len(rows.bank))
        return knn_top1(*rows, k=knn.k, temperature=knn.temperature, layout=self._layout)

    def pixels(self) -> Rows:
        """Returns raw pixels; larger images are reduced to 32x32."""
        return self._make_rows(make_pixels(self._config, self._layout))({})

    def _make_rows(self, encode: Encode) -> Callable[[Any], Rows]:
        """Returns a function: the variables of `encode` -> what it makes of the images."""
        knn, size, seed = self._config.knn, self._config.batch_size, self._config.seed
        parts = [
            (
                data,
                (labelled := _labelled(data))[subset(len(labelled), limit, seed)],
                make_extract(data, encode, size, self._layout, f"kNN: {what} images"),
            )
            for data, limit, what in (
                (self.train, knn.bank, "training"),
                (self.test, knn.queries, "held-out"),
            )
        ]

        def encoded(variables: Any) -> Rows:
            found = []
            for data, indices, extract in parts:
                assert data.labels is not None
                features, readable = extract(variables, indices)
                found.append((features[readable], data.labels[indices[readable]]))
            bank, queries = found
            return Rows(*queries, *bank)

        return encoded
