"""A data set decoded by host threads as the steps need it: a batch is its images."""

import itertools
import threading
from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from moco_jax.data.loading.bad_images import BadImages
from moco_jax.data.loading.buffers import Buffers
from moco_jax.data.loading.decode import BadImage, decode
from moco_jax.data.loading.order import Plan
from moco_jax.data.sources.source import Source
from moco_jax.parallel.mesh import Layout

_PIECE = 16  # images a task: all threads work on the next batch, whatever its size
_AHEAD = 2  # batches on the devices, or on their way, that no step has asked for yet
_IN_USE = 3  # batches that steps under way may still read
MOST_ON_DEVICES = _AHEAD + _IN_USE


class StreamedBatches:
    """What a streamed batch holds, to be read inside jit."""

    def images(self, arrays: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the batch's own canvases and sizes."""
        return batch["images"], batch["sizes"]

    def indices(self, batch: Any) -> jax.Array:
        """Returns i32[B], which images these are: a stand-in has its own index."""
        return batch["indices"]

    def readable(self, batch: Any) -> jax.Array:
        """Returns bool[B], false where another image stands in for an unreadable one."""
        return batch["readable"]


class StreamedData(StreamedBatches):
    """Images read and decoded by Grain's threads, onto canvases of one size.

    Attributes:
      labels: i32[N], or None.
      source_indices: i64[N], which of the source's images these are: all.
      arrays: nothing.
    """

    def __init__(
        self,
        source: Source,
        canvas: int,
        bad: BadImages,
        threads: int,
        layout: Layout,
        *,
        largest: int,
    ):
        """Reads nothing yet.

        Args:
          source: the images.
          canvas: side in pixels.
          bad: collects what can't be read.
          threads: that read and decode.
          layout: where arrays lie.
          largest: side in pixels of the largest image, as far as is known.
        """
        self.labels, self.arrays = source.labels, {}
        self.source_indices = np.arange(len(source))
        self._largest = largest
        self._source, self._canvas, self._bad = source, canvas, bad
        self._threads, self._layout = threads, layout

    def __len__(self) -> int:
        return len(self._source)

    @property
    def bad(self) -> int:
        """Unreadable images that this process has found so far."""
        return len(self._bad)

    def describe(self, batch_size: int) -> str:
        """Returns what it is, and the most memory that batches of B images take on this host."""
        rows = len(self._layout.rows(batch_size))
        megabytes = -(-self.most_batches(rows) * rows * self._canvas**2 * 3 // 2**20)
        text = (
            f"{self._source.name}: {len(self)} images, streamed by {self._threads} threads "
            f"(at most {megabytes} MB of host memory)"
        )
        if 2 * self._largest <= self._canvas:
            text += (
                f"; images look to be at most {self._largest} pixels long: "
                f"data.canvas={self._largest} would move {(self._canvas / self._largest) ** 2:.0f} "
                f"times less than data.canvas={self._canvas}"
            )
        return text

    def most_batches(self, rows: int) -> int:
        """Returns how many batches, of so many rows on this process, are in memory at most."""
        pieces = _pieces(rows)
        # What the threads may be ahead touches this many batches, full and partly filled ones.
        filling = -(-self._ahead(pieces) // pieces) + 1
        return filling + _AHEAD + 1 + _IN_USE

    def batches(self, plan: Plan, start: int = 0) -> Generator[Any]:
        """Yields `images` uint8[B, C, C, 3], `sizes`, `indices` and `readable` of each step.

        Decoding and copying to the devices run in threads of their own, which end with the
        generator. What lies on a canvas beside its image is arbitrary.
        """
        import grain  # here, since data in device memory need no loader

        if start >= len(plan):
            return
        rows = self._layout.rows(len(plan[start]))
        pieces = _pieces(len(rows))
        filling = _Filling(len(rows), self._canvas)

        def read(task: int) -> int:
            step, piece = divmod(int(task), pieces)
            part = slice(piece * _PIECE, (piece + 1) * _PIECE)
            self._read(plan[step][rows[part]], filling.of_step(step), part)
            return step

        # A task's number says all, so a run resumes by starting at another one, and how many
        # threads there are decides nothing.
        tasks = grain.MapDataset.range(start * pieces, len(plan) * pieces).map(read)
        options = grain.ReadOptions(
            num_threads=self._threads, prefetch_buffer_size=self._ahead(pieces)
        )
        steps = tasks.to_iter_dataset(options).batch(pieces, batch_fn=lambda steps: steps[0])
        copied = steps.map(lambda step: self._layout.put_batch(filling.pop(step)))
        yield from grain.experimental.ThreadPrefetchIterDataset(copied, prefetch_buffer_size=_AHEAD)

    def _ahead(self, pieces: int) -> int:
        """Returns the tasks begun before they are asked for: a batch, and work for all threads."""
        return pieces + 2 * self._threads

    def _read(self, indices: np.ndarray, batch: dict[str, np.ndarray], part: slice) -> None:
        """Puts the images of these indices into a part of the batch."""
        for row, index in enumerate(indices, start=part.start):
            image, found = self._read_one(int(index))
            height, width = batch["sizes"][row] = image.shape[:2]
            batch["images"][row, :height, :width] = image
            batch["indices"][row], batch["readable"][row] = found, found == index

    def _read_one(self, index: int) -> tuple[np.ndarray, int]:
        """Returns the image and its index, or the next readable one's: the same at every try."""
        for candidate in itertools.chain(range(index, len(self)), range(index)):
            try:
                return decode(self._source.read(candidate), self._canvas), candidate
            except (BadImage, OSError) as error:
                self._bad.add(candidate, error)
        raise ValueError(f"no image of {self._source.name} can be read")


def _pieces(rows: int) -> int:
    """Returns how many tasks fill a batch."""
    return -(-rows // _PIECE)


class _Filling:
    """The batches that are being filled, each made by the thread that comes to it first."""

    def __init__(self, rows: int, canvas: int):
        self._rows, self._canvas = rows, canvas
        self._buffers, self._lock = Buffers(), threading.Lock()
        self._batches: dict[int, dict[str, np.ndarray]] = {}

    def of_step(self, step: int) -> dict[str, np.ndarray]:
        with self._lock:
            if step not in self._batches:
                self._batches[step] = {
                    "images": self._buffers.take((self._rows, self._canvas, self._canvas, 3)),
                    "sizes": np.empty((self._rows, 2), np.int32),
                    "indices": np.empty(self._rows, np.int32),
                    "readable": np.empty(self._rows, bool),
                }
            return self._batches[step]

    def pop(self, step: int) -> dict[str, np.ndarray]:
        with self._lock:
            return self._batches.pop(step)
