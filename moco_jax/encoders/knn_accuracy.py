"""kNN accuracy of an encoder on all images, for several k and temperatures."""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.loading import loader
from moco_jax.data.sources.opening import open_named
from moco_jax.data.sources.source import Source, Sources, only_labelled
from moco_jax.encoders.features import labelled_features, make_encode
from moco_jax.encoders.pretrained import Pretrained
from moco_jax.encoders.votes import knn_table, leave_one_out_table
from moco_jax.parallel.mesh import Layout
from moco_jax.terminal import paths

COLUMNS = ("classified", "k", "temperature", "top1_percent")


# Keys of `data` that select the images to train on.
_SELECT = (
    *("held_out", "train_split", "test_split", "class_folders", "exclude"),
    *("image_column", "label_column"),
)


def trained_on(
    recorded: ConfigDict, used: ConfigDict, sources: Sources, leave_one_out: bool
) -> Iterator[str]:
    """Yields a line for each set of classified images with which the encoder was trained.

    The images of another place count as others.

    Args:
      recorded: of the encoder's run.
      used: the config that `sources` were opened with.
    """
    if _place(recorded.data) != _place(used.data):
        return
    same = all(recorded.data[key] == used.data[key] for key in _SELECT)
    trained = sources
    if not same or recorded.seed != used.seed:
        with contextlib.suppress(OSError, ValueError):  # the images are others by now
            trained = open_named(recorded, path=used.data.path)  # names begin with it
    known = _hashes(trained.train)
    for source in (sources.test, sources.train if leave_one_out else None):
        if source and (count := int(np.isin(_hashes(source), known).sum())):
            yield (
                f"warning: {source.name}: the encoder was trained on {count} of these "
                f"{len(source)} images, so their accuracy is not that of new images"
            )


def _hashes(source: Source) -> np.ndarray:
    """Returns hashes of the names of images, int64 [N]: a set of all takes gigabytes."""
    return np.fromiter(map(hash, source.names), np.int64, len(source))


def _place(data: ConfigDict) -> tuple[str, str]:
    return data.source, paths.each(os.path.realpath, data.path)


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
) -> Iterator[tuple[str, int, float, float]]:
    """Yields (which images are classified, k, temperature, top-1 in percent), k by k.

    k is the number of neighbours that is used: at most all images of the bank.

    Args:
      pretrained: the encoder; its own config says how images are prepared.
      sources: labelled images; those of `train` that have a label are the neighbours.
      data: how images are loaded: the `data` of a config.
      ks, temperatures: see `knn_table`.
      output: 'backbone' or 'head'.
      batch_size: images encoded at once; rounded up to a multiple of the devices.
      leave_one_out: also classify each training image by all the others.

    Raises:
      ValueError: if there are no labels or no images to classify, or the encoder does not have
        this output.
    """
    train, test = sources.train, sources.test
    if train.labels is not None:
        train = only_labelled(train)
    else:
        raise ValueError(
            f"{train.name} has no classes; allowed: a folder with one subfolder for each class, or "
            "a data set with classes"
        )
    if test is None and not leave_one_out:
        raise ValueError(
            f"{train.name} has no labelled test images: give --leave_one_out, or "
            "--config.data.held_out=0.1 to hold out some, or put them into test/ beside train/"
        )
    pretrained.check_output(output)
    encode = make_encode(pretrained.config, pretrained.encoder, output, layout)
    variables = layout.put(pretrained.variables, layout.replicated)

    def features(source: Source) -> tuple[np.ndarray, np.ndarray]:
        images = loader.load(source, data, layout)
        text = f"encoding {source.name}"
        return labelled_features(images, encode, variables, batch_size, layout, text)

    bank = features(train)
    votes: dict[str, Any] = dict(ks=ks, temperatures=temperatures, layout=layout)
    tables = {}  # with the most neighbours that there are
    if test is not None:
        table = knn_table(*features(test), *bank, **votes)
        tables[f"{test.name} by {train.name}"] = table, len(bank[1])
    if leave_one_out:
        table = leave_one_out_table(*bank, **votes)
        tables[f"{train.name}, each by the others"] = table, len(bank[1]) - 1
    for classified, (table, most) in tables.items():
        options = itertools.product(ks, temperatures)
        for (k, temperature), percent in zip(options, table.flat, strict=True):
            yield classified, min(k, most), temperature, float(percent)
