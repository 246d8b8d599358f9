"""The kNN monitor of a pretraining run: whether the features separate the classes."""

from collections.abc import Callable

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from moco_jax.data.augment.views import evaluation_view
from moco_jax.data.loading.loader import DataSet
from moco_jax.data.loading.order import subset
from moco_jax.encoders.features import make_encode, make_extract
from moco_jax.encoders.votes import knn_top1
from moco_jax.parallel.mesh import Layout

_LARGEST_SIDE = 32  # pixels; larger images are reduced to this before pixels are compared


class KnnMonitor:
    """Measures kNN top-1 on held-out labelled images.

    Attributes:
      train: the images that are neighbours.
      test: the images that are classified.
    """

    def __init__(
        self, config: ConfigDict, encoder: nn.Module, train: DataSet, test: DataSet, layout: Layout
    ):
        self._config, self._layout = config, layout
        self.train, self.test = train, test
        self._bank_indices = subset(len(train), config.knn.bank, config.seed)
        self._query_indices = subset(len(test), config.knn.queries, config.seed)
        encode = make_encode(config, encoder, config.knn.features, layout)
        self._extract_features = self._extractors(encode)

    def top1(self, params, batch_stats) -> float:
        """Returns top-1 in percent of the encoder with these parameters."""
        return self._measure(self._extract_features, {"params": params, "batch_stats": batch_stats})

    def pixels_top1(self) -> float:
        """Returns top-1 in percent of raw pixels; larger images are reduced to 32x32."""
        data = self._config.data
        side = min(_LARGEST_SIDE, data.image_size)
        view = evaluation_view(
            side, round(side * data.eval_resize / data.image_size), data.mean, data.std
        )

        @jax.jit
        def pixels(variables, images, sizes):
            x = view(images, sizes)
            return self._layout.shard(x.reshape(len(x), -1))

        return self._measure(self._extractors(pixels), {})

    def _extractors(self, encode: Callable) -> tuple[Callable, Callable]:
        """Returns the functions that encode images of `train` and of `test`."""
        size = self._config.batch_size
        return (
            make_extract(self.train, encode, size, self._layout),
            make_extract(self.test, encode, size, self._layout),
        )

    def _measure(self, extractors: tuple[Callable, Callable], variables: dict) -> float:
        assert self.train.labels is not None and self.test.labels is not None
        extract_bank, extract_queries = extractors
        bank, bank_readable = extract_bank(variables, self._bank_indices)
        queries, query_readable = extract_queries(variables, self._query_indices)
        return knn_top1(
            queries[query_readable],
            self.test.labels[self._query_indices[query_readable]],
            bank[bank_readable],
            self.train.labels[self._bank_indices[bank_readable]],
            k=self._config.knn.k,
            temperature=self._config.knn.temperature,
            layout=self._layout,
        )
