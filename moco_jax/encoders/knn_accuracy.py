"""kNN accuracy of an encoder on all images, for several k and temperatures."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.loading import loader
from moco_jax.data.sources.source import Source, Sources
from moco_jax.encoders.features import make_encode, make_extract
from moco_jax.encoders.pretrained import Pretrained
from moco_jax.encoders.votes import knn_table, leave_one_out_table
from moco_jax.parallel.mesh import Layout

Row = tuple[str, int, float, float]
COLUMNS = ("classified", "k", "temperature", "top1_percent")


def measure(
    pretrained: Pretrained,
    sources: Sources,
    data: ConfigDict,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    layout: Layout,
    output: str = "backbone",
    batch_size: int = 256,
    leave_one_out: bool = False,
) -> Iterator[Row]:
    """Yields (which images are classified, k, temperature, top-1 in percent).

    Args:
      pretrained: the encoder; its own config says how images are prepared.
      sources: labelled images; those of `train` are the neighbours.
      data: how images are loaded: the `data` of a config.
      ks: numbers of neighbours.
      temperatures: of the votes.
      layout: the devices and shardings.
      output: 'backbone' or 'head'.
      batch_size: images encoded at once; rounded up to a multiple of the devices.
      leave_one_out: also classify each training image by all the others.

    Raises:
      ValueError: if there are no labels or no images to classify, or the encoder does not have
        this output.
    """
    train, test = sources.train, sources.test
    if train.labels is None:
        raise ValueError(
            f"{train.name} has no classes; allowed: a folder with one subfolder for each class, or "
            "a data set with classes"
        )
    if test is None and not leave_one_out:
        raise ValueError(
            f"{train.name} has no test split; allowed: a folder test/ or val/ beside train/, "
            "data.held_out above 0, or --leave_one_out"
        )
    pretrained.check_output(output)
    encode = make_encode(pretrained.config, pretrained.encoder, output, layout)
    variables = layout.put(pretrained.variables, layout.replicated)
    batch_size = -(-batch_size // layout.devices) * layout.devices

    def features(source: Source) -> tuple[np.ndarray, np.ndarray]:
        images = loader.load(source, data, layout)
        extract = make_extract(images, encode, batch_size, layout)
        found, readable = extract(variables, np.arange(len(images)))
        assert images.labels is not None
        if readable.all():  # the features may be gigabytes: avoid a copy
            return found, images.labels
        return found[readable], images.labels[readable]

    bank = features(train)
    options: dict[str, Any] = dict(ks=ks, temperatures=temperatures, layout=layout)
    if test is not None:
        table = knn_table(*features(test), *bank, **options)
        yield from _rows(f"{test.name} by {train.name}", ks, temperatures, table)
    if leave_one_out:
        table = leave_one_out_table(*bank, **options)
        yield from _rows(f"{train.name}, each by the others", ks, temperatures, table)


def _rows(what: str, ks: Sequence[int], temperatures: Sequence[float], table) -> Iterator[Row]:
    for k, line in zip(ks, table, strict=True):
        for temperature, percent in zip(temperatures, line, strict=True):
            yield what, k, temperature, float(percent)
