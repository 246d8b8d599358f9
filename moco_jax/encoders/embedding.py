"""Encodes all images of a source; finds neighbours and near-duplicates among the features."""

from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.loading import loader
from moco_jax.data.sources.source import Source
from moco_jax.encoders.feature_file import FeatureRows, Features
from moco_jax.encoders.feature_reading import not_finite
from moco_jax.encoders.features import make_encode, make_stream
from moco_jax.encoders.neighbours import near_duplicates, nearest
from moco_jax.encoders.pretrained import Pretrained
from moco_jax.parallel.mesh import Layout
from moco_jax.text import printable


def embed(
    pretrained: Pretrained,
    source: Source,
    layout: Layout,
    *,
    output: str,
    batch_size: int,
    data: ConfigDict | None = None,
    exif_orientation: bool = True,
) -> Iterator[FeatureRows]:
    """Yields the features of a source's images, one batch at a time, in order.

    Leaves out images that can't be read. Logs the names of the first ones, and their number.

    Args:
      pretrained: the encoder; its config says how images are prepared.
      output: 'backbone' or 'head'.
      batch_size: images encoded at once; rounded up to a multiple of the devices.
      data: how images are loaded: the `data` of a config; default that of the encoder.
      exif_orientation: whether images are turned upright by their EXIF orientation.

    Raises:
      ValueError: if the encoder does not have this output, no image can be read, or a feature is
        not finite.
    """
    pretrained.check_output(output)
    config = ConfigDict(data or pretrained.config.data)
    config.max_bad_fraction, config.exif_orientation = 1.0, exif_orientation
    images = loader.load(source, config, layout)
    encode = make_encode(pretrained.config, pretrained.encoder, output, layout)
    stream = make_stream(images, encode, batch_size, layout, f"encoding {source.name}")
    variables, row = layout.put(pretrained.variables, layout.replicated), 0
    for features, readable in stream(variables, np.arange(len(images))):
        indices = images.source_indices[row : row + len(features)]
        row += len(features)
        part = FeatureRows(features[readable], indices[readable])
        if len(bad := not_finite(part.features)):
            raise ValueError(
                f"{pretrained.source} makes features that are NaN or infinite, such as that of "
                f"{printable(source.names[int(part.indices[bad[0]])])}"
            )
        yield part


def neighbours(
    features: Features, queries: np.ndarray, names: Sequence[str], k: int, layout: Layout
) -> Iterator[tuple[str, int, float, str, str]]:
    """Yields (query, rank, cosine, image, class) for the k nearest images of each query.

    Finds at most N. `queries` is f32[M, F]; `names` [M] are the names of the queries.
    """
    k = min(k, len(features.names))
    cosines, indices = nearest(queries, features.features, k=k, layout=layout)
    for name, line, rows in zip(names, cosines, indices, strict=True):
        for rank, (cosine, row) in enumerate(zip(line, rows, strict=True), start=1):
            yield name, rank, float(cosine), str(features.names[row]), features.class_name(row)


def duplicates(
    features: Features, threshold: float, layout: Layout
) -> Iterator[tuple[float, str, str]]:
    """Yields (cosine, image, image) for each pair whose cosine is at least the threshold.

    The most similar pairs come first. All of them are held in memory, 20 bytes each.
    """
    found = near_duplicates(features.features, threshold, layout)
    first, second, cosines = (np.concatenate(part) for part in zip(*found, strict=True))
    for row in np.lexsort((second, first, -cosines)):
        names = features.names[[first[row], second[row]]]
        yield float(cosines[row]), str(names[0]), str(names[1])
