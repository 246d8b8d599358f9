"""Features of a whole data set, by an encoder in evaluation mode."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.augment.views import evaluation_view
from moco_jax.data.loading.loader import DataSet
from moco_jax.data.loading.order import in_order
from moco_jax.parallel.mesh import Layout
from moco_jax.parallel.pipeline import pipelined

FEATURES = {"backbone": "features", "head": "projection"}  # config name -> method of Encoder

Encode = Callable[[Any, jax.Array, jax.Array], jax.Array]
Part = tuple[np.ndarray, np.ndarray]


def make_encode(config: ConfigDict, encoder: nn.Module, output: str, layout: Layout) -> Encode:
    """Returns (variables, uint8[B, H, W, 3], sizes i32[B, 2]) -> f32[B, F], compiled.

    Args:
      config: of the encoder's run; its `data` says how images are resized, cropped, normalised.
      encoder: an `Encoder`.
      output: one of `FEATURES`: the pooled features, or the unit vectors of the head.
      layout: where arrays lie.

    Raises:
      ValueError: for an unknown output.
    """
    if output not in FEATURES:
        raise ValueError(f"unknown output {output!r}; known: {', '.join(FEATURES)}")
    data = config.data
    view = evaluation_view(
        data.image_size, data.eval_resize, data.mean, data.std, jnp.dtype(config.dtype)
    )

    @layout.jit
    def encode(variables, images, sizes):
        features = encoder.apply(variables, view(images, sizes), method=FEATURES[output])
        return layout.shard(features)

    return encode


def make_stream(data: DataSet, encode: Encode, batch_size: int, layout: Layout):
    """Returns a function (variables, indices) -> iterator of features f32[b, F], readable bool[b].

    They come a batch at a time, on the host, whole on every process, in the order of the indices.
    What stood in for an image that can't be read is marked as not readable.

    Args:
      data: the images.
      encode: (variables, uint8[B, H, W, 3], sizes i32[B, 2]) -> f32[B, F], compiled.
      batch_size: B; divides by the devices.
      layout: where arrays lie.
    """
    # Apart from `encode`, so that data sets of equal canvases share one compiled encoder.
    fetch = jax.jit(data.images, out_shardings=layout.sharded())
    readable = jax.jit(data.readable, out_shardings=layout.replicated)
    gather = jax.jit(lambda x: x, out_shardings=layout.replicated)

    def stream(variables: Any, indices: np.ndarray) -> Iterator[Part]:
        def encoded(batch) -> tuple[jax.Array, jax.Array]:
            return gather(encode(variables, *fetch(data.arrays, batch))), readable(batch)

        left = len(indices)
        with contextlib.closing(data.batches(in_order(indices, batch_size))) as batches:
            for features, marks in map(jax.device_get, pipelined(map(encoded, batches))):
                yield features[:left], marks[:left]  # the last batch is padded
                left -= batch_size

    return stream


def make_extract(data: DataSet, encode: Encode, batch_size: int, layout: Layout):
    """Returns a function (variables, indices) -> (features f32[n, F], readable bool[n]).

    It is `make_stream`, the whole at once.
    """
    stream = make_stream(data, encode, batch_size, layout)

    def extract(variables: Any, indices: np.ndarray) -> Part:
        features, marks, row = np.empty((0, 0), np.float32), np.empty(len(indices), bool), 0
        for part, readable in stream(variables, indices):
            if not row:  # made once: joining parts at the end would take the memory twice
                features = np.empty((len(indices), part.shape[1]), part.dtype)
            features[row : row + len(part)], marks[row : row + len(part)] = part, readable
            row += len(part)
        return features, marks

    return extract
