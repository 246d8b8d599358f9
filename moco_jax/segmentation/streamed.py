"""Scenes decoded by host threads as the steps need them: a batch is its images and masks.

Scenes that can't be read stop the run: in a set that people have painted pixel by pixel they are
to be mended, not passed over.
"""

from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.data.loading.order import Plan
from moco_jax.parallel.mesh import Layout
from moco_jax.segmentation.voc import IGNORED, BadScene, Scenes

_AHEAD = 2  # batches on the devices, or on their way, that no step has asked for yet


class SceneData:
    """Scenes read and decoded by Grain's threads, onto canvases of the largest one's size.

    Attributes:
      labels: None; there is one for each pixel.
      source_indices: i64[N].
      arrays: nothing.
      bad: unreadable scenes, of which there is never one.
      canvas: height and width of the canvases in pixels.
    """

    labels = None
    bad = 0

    def __init__(self, scenes: Scenes, threads: int, layout: Layout):
        """Reads nothing yet."""
        self.arrays, self.source_indices = {}, np.arange(len(scenes))
        self.canvas = tuple(int(side) for side in scenes.sizes.max(axis=0))
        self._scenes, self._threads, self._layout = scenes, threads, layout

    def __len__(self) -> int:
        return len(self._scenes)

    def describe(self, batch_size: int) -> str:
        """Returns what it is."""
        height, width = self.canvas
        return (
            f"{self._scenes.name}: {len(self)} images with masks, up to {width}x{height}, "
            f"streamed by {self._threads} threads"
        )

    def batches(self, plan: Plan, start: int = 0) -> Generator[Any]:
        """Yields `images` uint8[B, H, W, 3], `masks` uint8[B, H, W], `sizes`, `indices` of a step.

        Decoding and copying to the devices run in threads of their own, which end with the
        generator.
        """
        import grain  # here, since other tasks have no need of it

        if start >= len(plan):
            return
        rows = self._layout.rows(len(plan[start]))

        def read(task: int) -> dict[str, np.ndarray]:
            step, row = divmod(int(task), len(rows))
            return self._on_canvas(int(plan[step][rows[row]]))

        # A task's number says all, so a run resumes by starting at another one.
        tasks = grain.MapDataset.range(start * len(rows), len(plan) * len(rows)).map(read)
        ahead = len(rows) + 2 * self._threads
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
        steps = tasks.to_iter_dataset(options).batch(len(rows))
        copied = steps.map(self._layout.put_batch)
        yield from grain.experimental.ThreadPrefetchIterDataset(copied, prefetch_buffer_size=_AHEAD)

    def _on_canvas(self, index: int) -> dict[str, np.ndarray]:
        """Returns a scene in the top left corner of its canvas."""
        image, mask = self._scenes.read(index)
        height, width = size = self._scenes.sizes[index]
        if image.shape[:2] != tuple(size) or mask.shape != tuple(size):
            raise BadScene(f"{self._scenes.images[index]} changed its size during the run")
        canvas = np.zeros((*self.canvas, 3), np.uint8)
        canvas[:height, :width] = image
        labels = np.full(self.canvas, IGNORED, np.uint8)
        labels[:height, :width] = mask
        return {
            "images": canvas,
            "masks": labels,
            "sizes": size,
            "indices": np.asarray(index, np.int32),
        }

    def images(self, arrays: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Returns, inside jit, canvases uint8[B, H, W, 3] and the true sizes i32[B, 2]."""
        return batch["images"], batch["sizes"]

    def indices(self, batch: Any) -> jax.Array:
        """Returns i32[B]: which of the data set's images these are."""
        return batch["indices"]

    def readable(self, batch: Any) -> jax.Array:
        """Returns bool[B], all true."""
        return jnp.ones(batch["indices"].shape, bool)
