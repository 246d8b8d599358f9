"""Measures the kNN accuracy of an encoder.

    python -m moco_jax.knn --encoder=runs/cifar10
    python -m moco_jax.knn --encoder=runs/cifar10 --images=FOLDER --k=10,20,200

It searches as the monitor of pretraining does, but over all images of train and test, with several
numbers of neighbours and temperatures. It trains nothing and draws nothing at random.
"""

import itertools
from collections.abc import Iterator, Sequence

from absl import flags

from moco_jax.data.sources.opening import open_named
from moco_jax.encoders import pretrained
from moco_jax.encoders.knn_accuracy import COLUMNS, measure, trained_on
from moco_jax.models.encoder import FEATURES
from moco_jax.parallel import cluster
from moco_jax.parallel.mesh import make_layout
from moco_jax.terminal import command_line

_ENCODER = flags.DEFINE_string(
    "encoder", None, "Workdir, checkpoint or .safetensors file, or its URL."
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "A folder, an archive, shards, an .npz, digits or tfds:<name>; default: the images of the "
    "config.",
)
_K = flags.DEFINE_list("k", ["10", "20", "200"], "Numbers of neighbours.")
_TEMPERATURE = flags.DEFINE_list("temperature", ["0.07", "0.1"], "Temperatures of the votes.")
_OUTPUT = flags.DEFINE_enum(
    "output", "backbone", list(FEATURES), "Features of the backbone, or unit vectors of the head."
)
_LEAVE_ONE_OUT = flags.DEFINE_bool(
    "leave_one_out", False, "Also classify each training image by all the others."
)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Images that are encoded at once.", lower_bound=1)
_FORMAT = flags.DEFINE_enum("format", "table", command_line.FORMATS, "Of the result.")


def main() -> None:
    if not _ENCODER.value:
        command_line.fail("--encoder must be given, such as --encoder=runs/cifar10")
    ks = command_line.numbers(_K, int)
    temperatures = command_line.numbers(_TEMPERATURE, float)
    if _IMAGES.value:
        command_line.image_changes(_IMAGES.value)  # before anything is read
    with command_line.naming(f"--encoder={_ENCODER.value}"):
        read = pretrained.read(_ENCODER.value)
    config = command_line.images_config(read.config, _IMAGES.value)
    with command_line.opening(_IMAGES.value) as tell:
        sources = open_named(config)
        tell([f"{_OUTPUT.value} of {read.source}", *sources.notes])
    command_line.tell(trained_on(read.config, config, sources, _LEAVE_ONE_OUT.value))
    found = measure(
        read,
        sources,
        config.data,
        ks=ks,
        temperatures=temperatures,
        layout=make_layout(),
        output=_OUTPUT.value,
        batch_size=_BATCH.value,
        leave_one_out=_LEAVE_ONE_OUT.value,
    )
    rows = list(found)  # on all processes
    command_line.tell(_reduced(ks, len(temperatures), [row[1] for row in rows]))
    if cluster.is_first():
        command_line.print_rows(rows, COLUMNS, _FORMAT.value)


def _reduced(ks: Sequence[int], temperatures: int, used: Sequence[int]) -> Iterator[str]:
    """Yields a line for each k that is above the number of neighbours, of the rows of `measure`."""
    asked = itertools.cycle(k for k in ks for _ in range(temperatures))
    pairs = dict.fromkeys(zip(asked, used, strict=False))
    yield from (
        f"k = {k} (asked {more}): there are no more neighbours" for more, k in pairs if k < more
    )


if __name__ == "__main__":
    command_line.run_main(main, config="recorded", join=cluster.joined)
