"""From a source to batches on the devices: kept in their memory whole, or streamed.

Either way a data set gives `batches(plan)`, small pytrees that a compiled step turns into images
with `images(arrays, batch)`; the step's code is the same for both.
"""

import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.loading.bad_images import BadImages
from moco_jax.data.loading.decode import BadImage, decode
from moco_jax.data.loading.order import Plan
from moco_jax.data.loading.resident import ResidentData
from moco_jax.data.loading.streamed import StreamedData
from moco_jax.data.sources.source import Source
from moco_jax.parallel.mesh import Layout

_MOST_THREADS = 64
_PROBES = 64  # images whose sizes tell whether a source fits in device memory
_CHUNK = 256  # images a task: a future for each of 50,000 small ones costs more than decoding


class Batches(Protocol):
    """What a compiled step needs to know of a data set's batches."""

    def images(self, arrays: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Returns, inside jit, canvases uint8[B, H, W, 3] and the true sizes i32[B, 2]."""
        ...

    def indices(self, batch: Any) -> jax.Array:
        """Returns, inside jit, i32[B]: which of the data set's images these are."""
        ...

    def readable(self, batch: Any) -> jax.Array:
        """Returns, inside jit, bool[B]: whether each image is itself, and no stand-in."""
        ...


class DataSet(Batches, Protocol):
    """What the loop needs of a data set."""

    @property
    def labels(self) -> np.ndarray | None:
        """The classes, i32[N], where there are any."""
        ...

    @property
    def source_indices(self) -> np.ndarray:
        """Which of the source's images these are, i64[N]."""
        ...

    @property
    def arrays(self) -> Any:
        """A pytree of device arrays that every step is given."""
        ...

    @property
    def bad(self) -> int:
        """Unreadable images that this process has met so far.

        Of several processes the sum is told, in which one that two have met counts twice.
        """
        ...

    def __len__(self) -> int: ...

    def describe(self, batch_size: int) -> str:
        """Returns in a line what it is, and what memory its batches take."""
        ...

    def batches(self, plan: Plan, start: int = 0) -> Generator[Any]:
        """Yields a batch of device arrays for each step of the plan from `start` on.

        To be closed, which ends the threads that work for it.
        """
        ...


def load(source: Source, config: ConfigDict, layout: Layout) -> DataSet:
    """Returns the source's images, in device memory if they fit into `resident_megabytes`.

    Args:
      source: the images.
      config: the whole config's `data`.
      layout: where arrays lie.

    Raises:
      ValueError: if more than `max_bad_fraction` of the images can't be read.
    """
    bad = BadImages(source, config.max_bad_fraction)
    workers = threads(config)
    limit = config.resident_megabytes * 2**20
    height, width = _probe(source, config.canvas)
    if len(source) * height * width * 3 <= limit:
        images = _decode_all(source, config.canvas, bad, workers)
        sizes = np.asarray([image.shape[:2] for image in images.values()], np.int32)
        if len(images) * int(np.prod(sizes.max(axis=0))) * 3 <= limit:
            canvases = _on_canvases(images, sizes)
            return ResidentData(source, np.fromiter(images, np.int64), canvases, sizes, layout)
    largest = max(height, width)
    return StreamedData(source, config.canvas, bad, workers, layout, largest=largest)


def threads(config: ConfigDict) -> int:
    """Returns how many threads decode, from the whole config's `data`."""
    if config.threads:
        return config.threads
    if hasattr(os, "sched_getaffinity"):  # Linux; in a container they are not all
        return min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    return min(os.cpu_count() or 1, _MOST_THREADS)


def _probe(source: Source, canvas: int) -> tuple[int, int]:
    """Returns the largest height and width of a few images over the source's length."""
    height = width = 0
    for index in np.linspace(0, len(source) - 1, min(_PROBES, len(source))).astype(int):
        try:
            shape = decode(source.read(int(index)), canvas).shape
        except (BadImage, OSError):
            continue  # counted when it is read for good
        height, width = max(height, shape[0]), max(width, shape[1])
    return height, width


def _decode_all(source: Source, canvas: int, bad: BadImages, threads: int) -> dict[int, np.ndarray]:
    """Returns {index: uint8[h, w, 3]} of the readable images, in order."""

    def read(index: int) -> np.ndarray | None:
        try:
            return decode(source.read(index), canvas)
        except (BadImage, OSError) as error:
            bad.add(index, error)
            return None

    chunks = [range(i, min(i + _CHUNK, len(source))) for i in range(0, len(source), _CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(lambda chunk: [(i, read(i)) for i in chunk], chunks)
        images = {i: image for chunk in done for i, image in chunk if image is not None}
    if not images:
        raise ValueError(f"no image of {source.name} can be read")
    return images


def _on_canvases(images: dict[int, np.ndarray], sizes: np.ndarray) -> np.ndarray:
    """Returns uint8[n, H, W, 3], each image in the top left corner of the largest one's size."""
    canvases = np.zeros((len(images), *sizes.max(axis=0), 3), np.uint8)
    for row, image in zip(canvases, images.values(), strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return canvases
