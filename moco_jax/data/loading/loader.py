"""Loads a source into device memory, or streams it if it is too large.

Both kinds of data set have the same interface: `batches(plan)` yields small pytrees, and a compiled
step turns each into images with `images(arrays, batch)`.
"""

import contextlib
import os
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.loading.decode import decode
from moco_jax.data.loading.decoding import BadImage, Decoding, decoding_of
from moco_jax.data.loading.order import Plan
from moco_jax.data.loading.reader import Reader, shallow
from moco_jax.data.loading.resident import ResidentData
from moco_jax.data.loading.streamed import StreamedData
from moco_jax.data.sources.source import Source
from moco_jax.parallel.mesh import Layout
from moco_jax.terminal import logs, progress

_MAX_THREADS = 64
# For each core, of images in a bucket: most of them wait for the network. A read takes 20 ms or
# more, and decoding takes 1 to 4.
_THREADS_THAT_WAIT, _MAX_THREADS_THAT_WAIT = 32, 512
_PROBED_IMAGES = 64  # their sizes decide whether a source may fit into device memory
_MEASURED_IMAGES = 32  # the median of their sides decides the size of views
_CHUNK = 256  # images per task: a future for each small image costs more than decoding it
_REMOTE_CHUNK = 4


class Batches(Protocol):
    """The interface of batches inside a compiled step."""

    def images(self, arrays: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Returns, inside jit, canvases uint8[B, H, W, 3] and image sizes i32[B, 2]."""
        ...

    def indices(self, batch: Any) -> jax.Array:
        """Returns, inside jit, i32[B], the indices of the images in the data set."""
        ...

    def readable(self, batch: Any) -> jax.Array:
        """Returns, inside jit, bool[B], false where a stand-in replaces an unreadable image."""
        ...


class DataSet(Batches, Protocol):
    """The interface of a data set for the training loop."""

    @property
    def labels(self) -> np.ndarray | None:
        """The labels i32[N], NO_LABEL for an image without one; None without classes."""
        ...

    @property
    def source_indices(self) -> np.ndarray:
        """The indices i64[N] of the images in the source."""
        ...

    @property
    def arrays(self) -> Any:
        """A pytree of device arrays, an argument of every step."""
        ...

    @property
    def bad(self) -> int:
        """The number of unreadable images that this process has found so far.

        The log has the sum over processes; an image that two processes found counts twice.
        """
        ...

    @property
    def skipped(self) -> str:
        """How many of these images there are of each kind, such as '2 x the file is empty'."""
        ...

    def __len__(self) -> int: ...

    def describe(self, batch_size: int) -> str:
        """Returns name, size and memory use in one line."""
        ...

    def batches(self, plan: Plan, start: int = 0) -> Generator[Any]:
        """Yields a batch of device arrays for each step of the plan from `start` on.

        The caller must close the generator, which stops its threads.
        """
        ...


def load(source: Source, config: ConfigDict, layout: Layout) -> DataSet:
    """Returns the data set of a source, in device memory if it fits into `resident_megabytes`.

    `config` is `data` of the whole config.

    Raises:
      ValueError: if more than `max_bad_fraction` of the images can't be read.
    """
    reader = Reader(source, decoding_of(config), config.max_bad_fraction)
    limit = config.resident_megabytes * 2**20
    height, width = _probe(source, reader.how)
    if len(source) * height * width * 3 <= limit:
        images = _decode_all(reader, threads(config, source.remote))
        sizes = np.asarray([image.shape[:2] for image in images.values()], np.int32)
        if len(images) * int(np.prod(sizes.max(axis=0))) * 3 <= limit:
            arrays = {"images": on_canvases(list(images.values()), sizes), "sizes": sizes}
            good = np.fromiter(images, np.int64)
            return ResidentData(source, good, arrays, layout, reader.skipped)
    workers = threads(config, source.remote)
    return StreamedData(reader, workers, layout, largest=max(height, width))


def threads(config: ConfigDict, remote: bool = False) -> int:
    """Returns the number of threads that read and decode, from `data` of the whole config.

    `remote` is that of the source.
    """
    if remote:
        return config.threads or min(_THREADS_THAT_WAIT * cores(), _MAX_THREADS_THAT_WAIT)
    return config.threads or min(cores(), _MAX_THREADS)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    # On Linux a container may have fewer cores than the host.
    on_linux = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1


def _probe(source: Source, how: Decoding) -> tuple[int, int]:
    """Returns the largest height and width among evenly spaced images of the source.

    Logs a warning if they have 16 bits and seem to use fewer.
    """
    height = width = 0
    deep = [0]  # the largest values of 16-bit images
    count = min(_PROBED_IMAGES, len(source))
    probed = np.linspace(0, len(source) - 1, count).astype(int)
    for index in progress.items(probed, count, f"measuring {source.name}", unit="images"):
        # The later read of the whole source counts a bad image.
        with contextlib.suppress(BadImage, OSError, MemoryError):
            shape = decode(source.read(int(index)), how, deep.append).shape
            height, width = max(height, shape[0]), max(width, shape[1])
    if warning := shallow(max(deep), how):
        logs.warning("%s: %s", source.name, warning)
    return height, width


def shorter_sides(source: Source, config: ConfigDict) -> list[int]:
    """Returns the shorter sides of evenly spaced readable images of the source, in pixels.

    `config` is `data` of the whole config. A side is at most `canvas`.
    """
    sides = []
    for index in np.linspace(0, len(source) - 1, min(_MEASURED_IMAGES, len(source))).astype(int):
        with contextlib.suppress(BadImage, OSError, MemoryError):
            sides.append(min(decode(source.read(int(index)), decoding_of(config)).shape[:2]))
    return sides


def _decode_all(reader: Reader, threads: int) -> dict[int, np.ndarray]:
    """Returns {index: uint8[h, w, 3]} of the readable images, in the order of the source."""
    indices = range(len(reader.source))
    length = _REMOTE_CHUNK if reader.source.remote else _CHUNK
    chunks = [indices[i : i + length] for i in indices[::length]]
    images, text = {}, f"loading {reader.source.name}"
    with (
        progress.bar(len(indices), text, unit="images") as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        for chunk in pool.map(lambda chunk: [(i, reader.read(i)) for i in chunk], chunks):
            images |= {i: image for i, image in chunk if image is not None}
            bar.update(len(chunk))
    reader.report()
    if not images:
        raise ValueError(f"none of the images of {reader.source.name} can be read")
    return images


def on_canvases(images: Sequence[np.ndarray], sizes: np.ndarray) -> np.ndarray:
    """Returns uint8[n, H, W, 3], each image in the top left corner of a canvas of maximal size."""
    canvases = np.zeros((len(images), *sizes.max(axis=0), 3), np.uint8)
    for row, image in zip(canvases, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return canvases
