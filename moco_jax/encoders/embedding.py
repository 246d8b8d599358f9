"""Features of any images, and what is near in them."""

from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.loading import loader
from moco_jax.data.sources.source import Source
from moco_jax.encoders.feature_file import Features, Part
from moco_jax.encoders.features import make_encode, make_stream
from moco_jax.encoders.neighbours import near_duplicates, nearest
from moco_jax.encoders.pretrained import Pretrained
from moco_jax.parallel.mesh import Layout


def embed(
    read: Pretrained, source: Source, layout: Layout, *, output: str, batch_size: int
) -> Iterator[Part]:
    """Yields features f32[n, F] and which of the source's images they are of, i64[n].

    Images that can't be read are named in the log and left out.

    Args:
      read: the encoder; its config tells how images are prepared and loaded.
      source: the images.
      layout: where arrays lie.
      output: 'backbone' or 'head'.
      batch_size: images encoded at once; rounded up to divide by the devices.

    Raises:
      ValueError: if the encoder has no such output, or no image can be read.
    """
    if output == "head" and not read.has_head:
        raise ValueError(f"{read.source} has no head; allowed: output='backbone'")
    config = ConfigDict(read.config.data)
    config.max_bad_fraction = 1.0
    data = loader.load(source, config, layout)
    encode = make_encode(read.config, read.encoder, output, layout)
    batch_size = -(-batch_size // layout.devices) * layout.devices
    stream = make_stream(data, encode, batch_size, layout)
    variables, row = layout.put(read.variables, layout.replicated), 0
    for features, readable in stream(variables, np.arange(len(data))):
        indices = data.source_indices[row : row + len(features)]
        row += len(features)
        yield features[readable], indices[readable]


def neighbours(
    features: Features, queries: np.ndarray, names: Sequence[str], k: int, layout: Layout
) -> Iterator[tuple[str, int, float, str, str]]:
    """Yields (query, rank, cosine, image, class) of the k nearest of queries f32[M, F]."""
    k = min(k, len(features.names))
    cosines, indices = nearest(queries, features.features, k=k, layout=layout)
    for name, line, found in zip(names, cosines, indices, strict=True):
        for rank, (cosine, row) in enumerate(zip(line, found, strict=True), start=1):
            yield name, rank, float(cosine), str(features.names[row]), features.label(row)


def duplicates(
    features: Features, threshold: float, layout: Layout
) -> Iterator[tuple[float, str, str]]:
    """Yields (cosine, image, image) of pairs of at least this cosine."""
    for pairs in near_duplicates(features.features, threshold, layout):
        for first, second, cosine in zip(*pairs, strict=True):
            yield float(cosine), str(features.names[first]), str(features.names[second])
