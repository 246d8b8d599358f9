"""The kNN monitor of a pretraining run: does the representation tell the classes apart?"""

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

_PIXELS = 32  # the side to which images are reduced where raw pixels are the features


class KnnMonitor:
    """Measures kNN top-1 on held-out labelled images.

    Attributes:
      train: neighbours come from here.
      test: classified are these.
    """

    def __init__(
        self, config: ConfigDict, encoder: nn.Module, train: DataSet, test: DataSet, layout: Layout
    ):
        self._config, self._layout = config, layout
        self.train, self.test = train, test
        self._bank = subset(len(train), config.knn.bank, config.seed)
        self._queries = subset(len(test), config.knn.queries, config.seed)
        encode = make_encode(config, encoder, config.knn.features, layout)
        self._encode = self._extractors(encode)

    def top1(self, params, batch_stats) -> float:
        """Returns percent for the encoder with these parameters."""
        return self._measure(self._encode, {"params": params, "batch_stats": batch_stats})

    def pixels_top1(self) -> float:
        """Returns percent for raw pixels, reduced to 32x32 where images are larger."""
        data = self._config.data
        side = min(_PIXELS, data.image_size)
        view = evaluation_view(
            side, round(side * data.eval_resize / data.image_size), data.mean, data.std
        )

        @jax.jit
        def pixels(variables, images, sizes):
            x = view(images, sizes)
            return self._layout.shard(x.reshape(len(x), -1))

        return self._measure(self._extractors(pixels), {})

    def _extractors(self, encode: Callable) -> tuple[Callable, Callable]:
        size = self._config.batch_size
        return (
            make_extract(self.train, encode, size, self._layout),
            make_extract(self.test, encode, size, self._layout),
        )

    def _measure(self, extractors: tuple[Callable, Callable], variables: dict) -> float:
        assert self.train.labels is not None and self.test.labels is not None
        extract_bank, extract_queries = extractors
        bank, readable = extract_bank(variables, self._bank)
        queries, asked = extract_queries(variables, self._queries)
        return knn_top1(
            queries[asked],
            self.test.labels[self._queries[asked]],
            bank[readable],
            self.train.labels[self._bank[readable]],
            k=self._config.knn.k,
            temperature=self._config.knn.temperature,
            layout=self._layout,
        )
