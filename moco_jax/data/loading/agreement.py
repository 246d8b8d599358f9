"""Checks that all processes read the same images."""

from typing import Any

import jax

from moco_jax.data.loading.loader import DataSet
from moco_jax.data.sources.source import Source, fingerprint
from moco_jax.parallel import cluster


def check_same_images(source: Source, data: DataSet, test: Any) -> None:
    """Raises a ValueError on all processes unless they have the same images.

    A process may see an old copy of the data set, or only some of its files. Training would go on
    with wrong batches, and the processes would wait for each other at the end. The fingerprint of
    `source`, the type and length of `data`, and whether `test` is None must be equal. The path of
    the images may differ.

    Args:
      source: the training images.
      data: the data set loaded from `source`.
      test: what evaluates the test images, or None without any.
    """
    if jax.process_count() == 1:
        return
    compared = (type(data).__name__, len(data), fingerprint(source), test is not None)
    cluster.check_alike(f"data set {source.name}", str(compared))
