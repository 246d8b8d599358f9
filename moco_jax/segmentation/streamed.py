"""Streams batches of images and masks that host threads decode on demand.

An unreadable scene stops the run. Masks are made by hand, so such a file must be repaired, not
skipped.
"""

from collections.abc import Generator
from typing import Any

import numpy as np

from moco_jax.data.loading.order import Plan
from moco_jax.data.loading.streamed import StreamedBatches
from moco_jax.parallel.mesh import Layout
from moco_jax.segmentation.voc import IGNORED, BadScene, Scenes

_AHEAD = 2  # batches copied to the devices in advance


class SceneData(StreamedBatches):
    """Scenes that Grain's threads decode onto canvases of the largest scene's size."""

    labels = None  # labels are per pixel, in the masks
    bad, skipped = 0, ""  # an unreadable scene raises an error

    def __init__(self, scenes: Scenes, threads: int, layout: Layout):
        self.arrays, self.source_indices = {}, np.arange(len(scenes))
        self.canvas = tuple(int(side) for side in scenes.sizes.max(axis=0))  # height, width
        self._scenes, self._threads, self._layout = scenes, threads, layout

    def __len__(self) -> int:
        return len(self._scenes)

    def describe(self, batch_size: int) -> str:
        height, width = self.canvas
        return (
            f"{self._scenes.name}: {len(self)} images with masks, up to {width}x{height}, "
            f"streamed by {self._threads} threads"
        )

    def batches(self, plan: Plan, start: int = 0) -> Generator[Any]:
        """Yields `images` uint8[B, H, W, 3], `masks` uint8[B, H, W], `sizes`, `indices` per step.

        Decoding and copying to the devices run in threads, which end with the generator.

        Raises:
          BadScene: if a scene can't be read.
        """
        import grain  # slow import that other tasks do not need

        if start >= len(plan):
            return
        rows = self._layout.rows(len(plan[start]))

        def read(task: int) -> dict[str, np.ndarray]:
            step, row = divmod(int(task), len(rows))
            return self._on_canvas(int(plan[step][rows[row]]))

        # A task is just a number, so a resumed run starts at another number.
        tasks = grain.MapDataset.range(start * len(rows), len(plan) * len(rows)).map(read)
        ahead = len(rows) + 2 * self._threads
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
        steps = tasks.to_iter_dataset(options).batch(len(rows))
        copied = steps.map(self._layout.put_batch)
        yield from grain.experimental.ThreadPrefetchIterDataset(copied, prefetch_buffer_size=_AHEAD)

    def _on_canvas(self, index: int) -> dict[str, np.ndarray]:
        """Returns a scene in the top left corner of a canvas."""
        image, mask = self._scenes.read(index)
        height, width = size = self._scenes.sizes[index]
        if image.shape[:2] != tuple(size) or mask.shape != tuple(size):
            raise BadScene(f"{self._scenes.images[index]} or its mask changed size during the run")
        canvas = np.zeros((*self.canvas, 3), np.uint8)
        canvas[:height, :width] = image
        labels = np.full(self.canvas, IGNORED, np.uint8)
        labels[:height, :width] = mask
        return {
            "images": canvas,
            "masks": labels,
            "sizes": size,
            "indices": np.asarray(index, np.int32),
            "readable": np.asarray(True),
        }
