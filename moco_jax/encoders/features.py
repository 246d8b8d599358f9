"""Encodes data sets: the encoder is in evaluation mode, the features end on the host."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.augment.views import evaluation_view
from moco_jax.data.loading.loader import DataSet
from moco_jax.data.loading.order import in_order
from moco_jax.models.encoder import FEATURES
from moco_jax.parallel.mesh import Layout
from moco_jax.parallel.pipeline import pipelined
from moco_jax.terminal import progress

Encode = Callable[[Any, jax.Array, jax.Array], jax.Array]


class EncodedImages(NamedTuple):
    """Features on the host, in the order of the images.

    Attributes:
      features: f32[n, F].
      readable: bool[n], false where another image replaces an unreadable one.
    """

    features: np.ndarray
    readable: np.ndarray


def make_encode(config: ConfigDict, encoder: nn.Module, output: str, layout: Layout) -> Encode:
    """Returns (variables, uint8[B, H, W, 3], sizes i32[B, 2]) -> f32[B, F], jitted.

    Args:
      config: of the encoder's run; its `data` says how images are resized, cropped, normalised.
      encoder: an `Encoder`.
      output: one of `FEATURES`: 'backbone', the pooled features, or 'head', unit vectors.

    Raises:
      ValueError: for an unknown output.
    """
    if output not in FEATURES:
        raise ValueError(f"output={output!r} is unknown; allowed: {', '.join(FEATURES)}")
    data = config.data
    view = evaluation_view(
        data.image_size, data.eval_resize, data.mean, data.std, jnp.dtype(config.dtype)
    )

    @layout.jit
    def encode(variables, images, sizes):
        features = encoder.apply(variables, view(images, sizes), method=FEATURES[output])
        return layout.shard(features)

    return encode


def make_stream(
    data: DataSet, encode: Encode, batch_size: int, layout: Layout, text: str = "encoding"
):
    """Returns a function (variables, indices) -> iterator of `EncodedImages`, one for each batch.

    Every process gets all features, in the order of the indices. B is `batch_size`, rounded up to a
    multiple of the devices. `text` is what the progress bar says.
    """
    batch_size = -(-batch_size // layout.devices) * layout.devices
    # Separate from `encode`, so that data sets with the same canvas share one compiled encoder.
    fetch = jax.jit(data.images, out_shardings=layout.sharded())
    readable = jax.jit(data.readable, out_shardings=layout.replicated)
    gather = jax.jit(lambda x: x, out_shardings=layout.replicated)

    def stream(variables: Any, indices: np.ndarray) -> Iterator[EncodedImages]:
        def encoded(batch) -> tuple[jax.Array, jax.Array]:
            return gather(encode(variables, *fetch(data.arrays, batch))), readable(batch)

        left = len(indices)
        with (
            progress.bar(left, text, unit="images", first="compiling") as bar,
            contextlib.closing(data.batches(in_order(indices, batch_size))) as batches,
        ):
            for features, marks in map(jax.device_get, pipelined(map(encoded, batches))):
                bar.update(min(left, batch_size))
                yield EncodedImages(features[:left], marks[:left])  # the last batch is padded
                left -= batch_size

    return stream


def make_extract(
    data: DataSet, encode: Encode, batch_size: int, layout: Layout, text: str = "encoding"
):
    """Returns a function (variables, indices) -> `EncodedImages` of all; see `make_stream`."""
    stream = make_stream(data, encode, batch_size, layout, text)

    def extract(variables: Any, indices: np.ndarray) -> EncodedImages:
        features, marks, row = np.empty((0, 0), np.float32), np.empty(len(indices), bool), 0
        for part, readable in stream(variables, indices):
            if not row:  # allocated once: to concatenate at the end takes the memory twice
                features = np.empty((len(indices), part.shape[1]), part.dtype)
            features[row : row + len(part)], marks[row : row + len(part)] = part, readable
            row += len(part)
        return EncodedImages(features, marks)

    return extract


def labelled_features(
    data: DataSet,
    encode: Encode,
    variables: Any,
    batch_size: int,
    layout: Layout,
    text: str = "encoding",
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features f32[N, F] and labels i32[N] of readable images; see `make_stream`."""
    extract = make_extract(data, encode, batch_size, layout, text)
    features, readable = extract(variables, np.arange(len(data)))
    assert data.labels is not None
    if readable.all():  # the features may be gigabytes: avoid a copy
        return features, data.labels
    return features[readable], data.labels[readable]
