"""Checks that all processes read the same images."""

import zlib
from typing import Any

import jax
import numpy as np

from moco_jax.data.loading.loader import DataSet
from moco_jax.data.sources.source import Source
from moco_jax.parallel import cluster


def check_same_images(source: Source, data: DataSet, test: Any) -> None:
    """Raises a ValueError on all processes unless they have the same images.

    A process may see an old copy of the data set, or only some of its files. Training would go on
    with wrong batches, and the processes would wait for each other at the end. The names
    and labels of `source`, the type and length of `data`, and whether `test` is None must be equal.

    Args:
      source: the training images.
      data: the data set loaded from `source`.
      test: what evaluates the test images, or None without any.
    """
    if jax.process_count() == 1:
        return
    checksum = zlib.crc32("\n".join(source.names).encode())
    if source.labels is not None:
        checksum = zlib.crc32(np.ascontiguousarray(source.labels).tobytes(), checksum)
    compared = (type(data).__name__, len(data), checksum, test is not None)
    cluster.check_alike(f"data set {source.name}", str(compared))
