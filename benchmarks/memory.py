"""Measures the memory of a process that streams images, to find leaks.

Command: python -m benchmarks.memory --path=imagenet_samples.tar --epochs=4

Prints the memory that the loader predicts, the memory before the first batch, and the highest
memory of each epoch.
"""

import argparse
import contextlib
import pathlib

from moco_jax import config as config_lib
from moco_jax.data.loading import loader
from moco_jax.data.loading.order import ShuffledOrder
from moco_jax.data.sources import opening
from moco_jax.parallel.mesh import make_layout


def resident_megabytes() -> int:
    """Returns the resident memory of this process (Linux)."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="tar or folder of images")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=50)
    options = parser.parse_args()

    source = opening.open_sources(source="images", path=options.path, held_out=0.0, seed=0).train
    config = config_lib.base().data
    config.resident_megabytes = 0
    data = loader.load(source, config, make_layout())
    steps = len(source) // options.batch_size
    order = ShuffledOrder(0, len(source), options.batch_size, steps * options.epochs)
    print(data.describe(options.batch_size))
    print(f"before the first batch: {resident_megabytes()} MB")
    highest = 0
    with contextlib.closing(data.batches(order)) as batches:
        for step, _ in enumerate(batches, start=1):
            highest = max(highest, resident_megabytes())
            if step % steps == 0:
                print(f"epoch {step // steps}: highest {highest} MB", flush=True)
                highest = 0


if __name__ == "__main__":
    main()
