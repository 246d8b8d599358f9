"""kNN accuracy of an encoder: `python -m moco_jax.knn --encoder=runs/cifar10 --k=10,20,200`.

The search is that of the monitor of pretraining (evaluation/knn.py), but with all images of train
and test, at any number of neighbours and temperatures. Nothing is trained, nothing is drawn.
"""

import pathlib
import sys

from absl import app, flags, logging

from moco_jax import command_line
from moco_jax.data.sources.opening import open_named
from moco_jax.encoders import pretrained
from moco_jax.encoders.features import FEATURES
from moco_jax.encoders.knn_accuracy import COLUMNS, measure
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import make_layout

_ENCODER = flags.DEFINE_string("encoder", None, "Workdir, checkpoint or .safetensors file.")
_IMAGES = flags.DEFINE_string(
    "images", None, "Where they are, if not where the config says: a folder, a tar, an .npz."
)
_K = flags.DEFINE_list("k", ["10", "20", "200"], "Numbers of neighbours.")
_TEMPERATURE = flags.DEFINE_list("temperature", ["0.07", "0.1"], "Temperatures of the votes.")
_OUTPUT = flags.DEFINE_enum("output", "backbone", list(FEATURES), "Which features.")
_LEAVE_ONE_OUT = flags.DEFINE_bool(
    "leave_one_out", False, "Also classify each training image by all the others."
)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images at once.", lower_bound=1)
_FORMAT = flags.DEFINE_enum("format", "table", command_line.FORMS, "Of the result.")


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
            if _IMAGES.value:
                config.data.path = str(pathlib.Path(_IMAGES.value).expanduser())
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
