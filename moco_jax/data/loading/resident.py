"""A data set that is decoded once and kept in device memory; a batch is a list of indices."""

from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.data.loading.order import Plan
from moco_jax.data.sources.source import Source
from moco_jax.parallel.mesh import Layout
from moco_jax.terminal import progress


class ResidentBatches:
    """Access to resident batches inside jit, as `loader.Batches`; a batch is indices i32[B].

    Attributes:
      canvas: H and W, pixels.
    """

    def __init__(self, canvas: tuple[int, int], layout: Layout):
        self.canvas, self._layout = canvas, layout

    def images(self, arrays: Any, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns canvases uint8[B, H, W, 3] and sizes i32[B, 2], sharded over the devices."""
        rows, sizes = (
            self._layout.shard(jnp.take(arrays[name], batch, axis=0))
            for name in ("images", "sizes")
        )
        return rows.reshape(len(rows), *self.canvas, 3), sizes

    def indices(self, batch: jax.Array) -> jax.Array:
        return batch

    def readable(self, batch: jax.Array) -> jax.Array:
        """Returns bool[B], all true: unreadable images are not in this data set."""
        return jnp.ones(batch.shape, bool)


class ResidentData(ResidentBatches):
    """All readable images of a source, replicated on every device.

    Each image lies in the top left corner of a canvas. `loader.DataSet` documents the interface.

    Attributes:
      arrays: `images` uint8[N, H * W * 3] and `sizes` i32[N, 2]. An image is one row: a TPU holds
        [N, H, W, 3] with N last, and would copy all images at every step to take some.
      bad: number of unreadable images in the source, on process 0; 0 on the others.
      skipped: how many there are of each kind.
    """

    def __init__(
        self,
        source: Source,
        good: np.ndarray,
        arrays: dict[str, np.ndarray],
        layout: Layout,
        skipped: str,
    ):
        """Copies `arrays` to the devices.

        Args:
          source: of the images.
          good: [N], the indices of the readable images.
          arrays: `images` uint8[N, H, W, 3] and `sizes` i32[N, 2].
          layout: the devices.
          skipped: how many unreadable images there are of each kind.
        """
        images = arrays["images"]
        super().__init__(images.shape[1:3], layout)
        arrays = arrays | {"images": images.reshape(len(images), -1)}
        self.labels = None if source.labels is None else source.labels[good]
        self.source_indices = good
        # Every process reads all images, and the loop sums `bad` over processes.
        self.bad = len(source) - len(good) if jax.process_index() == 0 else 0
        self.skipped, self._name = skipped, source.name
        with progress.phase(f"copying {images.nbytes >> 20:,} MB to the devices"):
            self.arrays = layout.put(arrays, layout.replicated)

    def __len__(self) -> int:
        return len(self.arrays["images"])

    def describe(self, batch_size: int) -> str:
        """Returns name, size and device memory in one line; batches need almost no memory."""
        megabytes = self.arrays["images"].nbytes >> 20
        count = f"{len(self)} of {len(self) + self.bad}" if self.bad else str(len(self))
        return f"{self._name}: {count} images, {megabytes} MB resident"

    def batches(self, plan: Plan, start: int = 0) -> Generator[jax.Array]:
        """Yields the image indices i32[B] of each step."""
        rows = self._layout.rows(len(plan[0]))
        for step in range(start, len(plan)):
            yield self._layout.put_batch(plan[step][rows])
