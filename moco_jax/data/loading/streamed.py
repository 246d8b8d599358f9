"""A data set that host threads decode while steps run; a batch has its own images."""

import itertools
import threading
from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from moco_jax.data.loading.buffers import Buffers
from moco_jax.data.loading.order import Plan
from moco_jax.data.loading.reader import Reader
from moco_jax.parallel.mesh import Layout

_TASK_IMAGES = 16  # small tasks: all threads work on the next batch, whatever its size
_REMOTE_TASK_IMAGES = 2  # many threads wait: larger tasks would spread over many batches
_AHEAD = 2  # batches that are copied to the devices before a step asks for them
_IN_USE = 3  # batches that running steps may still read
MOST_ON_DEVICES = _AHEAD + _IN_USE


class StreamedBatches:
    """Access to streamed batches inside jit, as `loader.Batches`; a stand-in has its own index."""

    def images(self, arrays: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        return batch["images"], batch["sizes"]

    def indices(self, batch: Any) -> jax.Array:
        return batch["indices"]

    def readable(self, batch: Any) -> jax.Array:
        return batch["readable"]


class StreamedData(StreamedBatches):
    """Images that Grain threads read and decode onto square canvases of C x C pixels.

    The next readable image of the source is the stand-in for an unreadable one, so the data set has
    all images of the source. `loader.DataSet` documents the interface; `arrays` is empty.
    """

    def __init__(self, reader: Reader, threads: int, layout: Layout, *, largest: int):
        """Reads no images yet.

        Args:
          reader: decodes the images onto canvases of C = `reader.how.canvas` pixels.
          threads: number of threads that read and decode.
          layout: the mesh.
          largest: longest side in pixels among the images seen so far.
        """
        self.labels, self.arrays = reader.source.labels, {}
        self.source_indices = np.arange(len(reader.source))
        self._reader, self._canvas, self._largest = reader, reader.how.canvas, largest
        self._threads, self._layout = threads, layout
        self._task_images = _REMOTE_TASK_IMAGES if reader.source.remote else _TASK_IMAGES

    def __len__(self) -> int:
        return len(self._reader.source)

    @property
    def bad(self) -> int:
        return self._reader.bad

    @property
    def skipped(self) -> str:
        return self._reader.skipped

    def describe(self, batch_size: int) -> str:
        """Returns name, size and the most host memory that batches of B images use, in one line."""
        rows = len(self._layout.rows(batch_size))
        tasks = -(-rows // self._task_images)
        # The tasks that run ahead fill this many batches, the last ones partly.
        filling = -(-self._ahead(tasks) // tasks) + 1
        batches = filling + _AHEAD + 1 + _IN_USE
        megabytes = -(-batches * rows * self._canvas**2 * 3 // 2**20)
        text = (
            f"{self._reader.source.name}: {len(self)} images, streamed by {self._threads} threads "
            f"(at most {megabytes} MB of host memory)"
        )
        if 2 * self._largest <= self._canvas:
            text += (
                f"; images seem to have at most {self._largest} pixels per side: "
                f"data.canvas={self._largest} would copy {(self._canvas / self._largest) ** 2:.0f} "
                f"times fewer bytes than data.canvas={self._canvas}"
            )
        return text

    def batches(self, plan: Plan, start: int = 0) -> Generator[Any]:
        """Yields `images` uint8[B, C, C, 3], `sizes`, `indices` and `readable` of each step.

        Background threads decode and copy to the devices; they stop when the generator is closed.
        Pixels of a canvas outside its image are arbitrary.
        """
        import grain  # imported here: data in device memory do not need it

        if start >= len(plan):
            return
        rows = self._layout.rows(len(plan[start]))
        per_batch = -(-len(rows) // self._task_images)  # tasks
        filling = _BatchesInProgress(len(rows), self._canvas)

        def read(task: int) -> int:
            step, position = divmod(int(task), per_batch)
            part = slice(position * self._task_images, (position + 1) * self._task_images)
            self._read(plan[step][rows[part]], filling.get(step), part)
            return step

        # A task depends on its number only, so a run resumes at any task, and the batches do not
        # depend on the number of threads.
        tasks = grain.MapDataset.range(start * per_batch, len(plan) * per_batch).map(read)
        ahead = self._ahead(per_batch)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
        steps = tasks.to_iter_dataset(options).batch(per_batch, batch_fn=lambda steps: steps[0])
        copied = steps.map(lambda step: self._layout.put_batch(filling.pop(step)))
        try:
            yield from grain.experimental.ThreadPrefetchIterDataset(
                copied, prefetch_buffer_size=_AHEAD
            )
        finally:
            self._reader.report()

    def _ahead(self, per_batch: int) -> int:
        """Returns how many tasks run ahead: one batch, and two tasks per thread."""
        return per_batch + 2 * self._threads

    def _read(self, indices: np.ndarray, batch: dict[str, np.ndarray], part: slice) -> None:
        """Writes the images of these indices into a part of the batch."""
        for row, index in enumerate(indices, start=part.start):
            image, found = self._read_one(int(index))
            height, width = batch["sizes"][row] = image.shape[:2]
            batch["images"][row, :height, :width] = image
            batch["indices"][row], batch["readable"][row] = found, found == index

    def _read_one(self, index: int) -> tuple[np.ndarray, int]:
        """Returns the image and its index, or those of its stand-in: the next readable image."""
        for candidate in itertools.chain(range(index, len(self)), range(index)):
            if (image := self._reader.read(candidate)) is not None:
                return image, candidate
        raise ValueError(f"none of the images of {self._reader.source.name} can be read")


class _BatchesInProgress:
    """The batches that threads are filling; the first thread that needs a batch allocates it."""

    def __init__(self, rows: int, canvas: int):
        self._rows, self._canvas = rows, canvas
        self._buffers, self._lock = Buffers(), threading.Lock()
        self._batches: dict[int, dict[str, np.ndarray]] = {}

    def get(self, step: int) -> dict[str, np.ndarray]:
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
