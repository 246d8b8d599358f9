"""A data set decoded by host threads as the steps need it: a batch is its pictures."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from moco_jax.data.bad_pictures import BadPictures
from moco_jax.data.copy_ahead import copied_ahead
from moco_jax.data.decode import BadImage, canvas_pad, decode
from moco_jax.data.order import Plan
from moco_jax.data.picture_source import Source
from moco_jax.mesh import Layout


class StreamedData:
    """Pictures read, decoded and put on canvases of one size by Grain's threads.

    Attributes:
      labels: i32[N], or None.
      arrays: nothing.
      description: a line for the log.
    """

    def __init__(self, source: Source, canvas: int, bad: BadPictures, threads: int, layout: Layout):
        """Reads nothing yet.

        Args:
          source: the pictures.
          canvas: side in pixels.
          bad: collects what can't be read.
          threads: that read and decode.
          layout: where arrays lie.
        """
        self.labels, self.arrays = source.labels, {}
        self.description = f"{source.name}: {len(source)} pictures, streamed by {threads} threads"
        self._source, self._canvas, self._bad = source, canvas, bad
        self._threads, self._layout = threads, layout

    def __len__(self) -> int:
        return len(self._source)

    @property
    def bad(self) -> int:
        """Unreadable pictures found so far."""
        return len(self._bad)

    def batches(self, plan: Plan, start: int = 0) -> Iterator[Any]:
        """Yields `images` uint8[B, C, C, 3] and `sizes` i32[B, 2] of each step."""
        import grain  # here, since data in device memory need no loader

        decoded = grain.MapDataset.range(len(plan)).map(lambda step: self._read(plan[int(step)]))
        # An element is a whole batch, so the buffer counts batches and bounds the memory.
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._threads)
        return copied_ahead(iter(decoded[start:].to_iter_dataset(options)), self._layout)

    def pictures(self, arrays: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the batch's own canvases and sizes."""
        return batch["images"], batch["sizes"]

    def _read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        pictures = [self._read_one(int(index)) for index in indices]
        return {
            "images": np.stack([canvas_pad(p, self._canvas, self._canvas) for p in pictures]),
            "sizes": np.asarray([p.shape[:2] for p in pictures], np.int32),
        }

    def _read_one(self, index: int) -> np.ndarray:
        """Returns the picture, or the next readable one: the same one at every try."""
        for candidate in itertools.chain(range(index, len(self)), range(index)):
            try:
                return decode(self._source.read(candidate), self._canvas)
            except (BadImage, OSError) as error:
                self._bad.add(candidate, error)
        raise ValueError(f"no picture of {self._source.name} can be read")
