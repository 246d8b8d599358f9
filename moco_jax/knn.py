"""kNN accuracy of an encoder: `python -m moco_jax.knn --encoder=runs/cifar10 --k=10,20,200`.

The search is that of the monitor of pretraining (evaluation/knn.py), but with all pictures of train
and test, at any number of neighbours and temperatures. Nothing is trained, nothing is drawn.
"""

import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

from moco_jax import cluster, command_line, pretrained
from moco_jax.data import loader
from moco_jax.data.picture_source import Source, Sources
from moco_jax.data.sources import open_named
from moco_jax.evaluation.features import FEATURES, make_encode, make_extract
from moco_jax.evaluation.knn import knn_table, leave_one_out_table
from moco_jax.mesh import Layout, make_layout

_ENCODER = flags.DEFINE_string("encoder", None, "Workdir, checkpoint or .safetensors file.")
_PICTURES = flags.DEFINE_string(
    "pictures", None, "Where they are, if not where the config says: a folder, a tar, an .npz."
)
_K = flags.DEFINE_list("k", ["10", "20", "200"], "Numbers of neighbours.")
_TEMPERATURE = flags.DEFINE_list("temperature", ["0.07", "0.1"], "Temperatures of the votes.")
_OUTPUT = flags.DEFINE_enum("output", "backbone", list(FEATURES), "Which features.")
_LEAVE_ONE_OUT = flags.DEFINE_bool(
    "leave_one_out", False, "Also classify each training picture by all the others."
)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Pictures at once.", lower_bound=1)
_FORMAT = flags.DEFINE_enum("format", "table", command_line.FORMS, "Of the result.")

Row = tuple[str, int, float, float]
COLUMNS = ("classified", "k", "temperature", "top1_percent")


def measure(
    read: pretrained.Pretrained,
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
    """Yields (what is classified, k, temperature, percent classified rightly).

    Args:
      read: the encoder; its own config tells how pictures are prepared.
      sources: labelled pictures to train and, if any, to test on.
      data: how they are loaded: a whole config's `data`.
      ks: numbers of neighbours.
      temperatures: of the votes.
      layout: where arrays lie.
      output: 'backbone' or 'head'.
      batch_size: pictures encoded at once; rounded up to divide by the devices.
      leave_one_out: whether training pictures are classified by the other ones, too.

    Raises:
      ValueError: if there are no labels, nothing to classify, or no such output.
    """
    train, test = sources.train, sources.test
    if train.labels is None:
        raise ValueError(f"{train.name} has no classes: one folder a class makes them")
    if test is None and not leave_one_out:
        raise ValueError(
            f"{train.name} has no test split; allowed: a folder test/ or val/ beside train/, "
            "data.held_out above 0, or --leave_one_out"
        )
    if output == "head" and not read.has_head:
        raise ValueError(f"{read.source} has no head; allowed: output='backbone'")
    encode = make_encode(read.config, read.encoder, output, layout)
    variables = layout.put(read.variables, layout.replicated)
    batch_size = -(-batch_size // layout.devices) * layout.devices

    def features(source: Source) -> tuple[np.ndarray, np.ndarray]:
        pictures = loader.load(source, data, layout)
        extract = make_extract(pictures, encode, batch_size, layout)
        found, readable = extract(variables, np.arange(len(pictures)))
        assert pictures.labels is not None
        if readable.all():  # no copy of what may be gigabytes
            return found, pictures.labels
        return found[readable], pictures.labels[readable]

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


def main(_) -> None:
    if not _ENCODER.value:
        command_line.fail("give an encoder, such as --encoder=runs/cifar10")
    ks = command_line.numbers(_K, int)
    temperatures = command_line.numbers(_TEMPERATURE, float)
    given = command_line.config() if command_line.has_config() else None
    command_line.quieten()
    with cluster.joined():
        try:
            read = pretrained.read(_ENCODER.value)
            config = given or read.config
            if _PICTURES.value:
                config.data.path = str(pathlib.Path(_PICTURES.value).expanduser())
            if cluster.is_first():
                print(f"{_OUTPUT.value} of {read.source}", file=sys.stderr)
            rows = measure(
                read,
                open_named(config),
                config.data,
                ks=ks,
                temperatures=temperatures,
                layout=make_layout(),
                output=_OUTPUT.value,
                batch_size=_BATCH.value,
                leave_one_out=_LEAVE_ONE_OUT.value,
            )
            table = list(rows)
        except (OSError, ValueError) as error:
            if logging.level_debug():
                raise
            command_line.fail(str(error))
        if cluster.is_first():
            command_line.tell(table, COLUMNS, _FORMAT.value)


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse_without_config)
