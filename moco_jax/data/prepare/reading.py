"""Reads images by threads, in the order of the source, each compressed part of a file few times."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from moco_jax.data.loading.decoding import BadImage
from moco_jax.data.prepare.encoding import Encoding
from moco_jax.data.sources.archives.memory import available_bytes
from moco_jax.data.sources.source import Source

_CHUNK = 128  # images that threads read while others are used
_FIRST = 1024  # images of the first window, which gives the size of an image
_MAX_BYTES = 4 << 30  # of the images of a window, or a quarter of the free memory


class Read(NamedTuple):
    """An image as it is written."""

    index: int
    data: bytes
    ending: str  # a new one, or ''
    problem: str  # why it can't be read, or ''


def read_images(
    source: Source,
    rows: np.ndarray,
    encoding: Encoding,
    pool: ThreadPoolExecutor,
    done: Callable[[int], object],
) -> Iterator[Read]:
    """Yields the images of rows int [M] in that order; calls done(1) for each that is read.

    Images that are decoded in groups are read group by group in a window, which is held in memory.
    In their own order, each image might decode its group again.
    """

    def work(index: int) -> Read:
        try:
            return Read(index, *encoding.apply(source.read(index)), "")
        except (BadImage, OSError) as error:
            return Read(index, b"", "", str(error))

    if source.groups is None:
        for found in _ahead(work, rows, pool):
            yield found
            done(1)
        return
    start, count, most = 0, _FIRST, min(_MAX_BYTES, available_bytes() // 4)
    while start < len(rows):
        window = rows[start : start + count]
        held: dict[int, Read] = {}
        for found in _ahead(work, window[np.argsort(source.groups[window], kind="stable")], pool):
            held[found.index] = found
            done(1)
        start += count
        size = sum(len(found.data) for found in held.values())
        count = max(_FIRST, len(window) * most // max(size, 1))
        yield from map(held.pop, window.tolist())


def _ahead(
    work: Callable[[int], Read], rows: np.ndarray, pool: ThreadPoolExecutor
) -> Iterator[Read]:
    """Yields work(row) of each row in order; threads are a chunk ahead."""
    ahead: Iterable[Read] = ()
    for start in range(0, len(rows) + _CHUNK, _CHUNK):
        following = pool.map(work, rows[start : start + _CHUNK].tolist())
        yield from ahead
        ahead = following
