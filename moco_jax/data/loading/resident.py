"""A data set that lies decoded in the devices' memory: a batch is a list of indices."""

from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.data.loading.order import Plan
from moco_jax.data.sources.source import Source
from moco_jax.parallel.mesh import Layout


class ResidentData:
    """Images of any size, each in the top left corner of a canvas, whole on every device.

    Attributes:
      labels: i32[N], or None.
      source_indices: i64[N], which of the source's images these are.
      arrays: `images` uint8[N, H, W, 3] and `sizes` i32[N, 2].
      bad: images of the source that could not be read.
    """

    def __init__(
        self,
        source: Source,
        good: np.ndarray,
        images: np.ndarray,
        sizes: np.ndarray,
        layout: Layout,
    ):
        """Copies the images to the devices.

        Args:
          source: where they come from.
          good: indices [N] of the source's readable images.
          images: uint8[N, H, W, 3].
          sizes: heights and widths, i32[N, 2].
          layout: where arrays lie.
        """
        self.labels = None if source.labels is None else source.labels[good]
        self.source_indices = good
        # Every process reads all of them; the first one counts.
        self.bad = len(source) - len(good) if jax.process_index() == 0 else 0
        self._name = source.name
        self.arrays = layout.put({"images": images, "sizes": sizes}, layout.replicated)
        self._layout = layout

    def __len__(self) -> int:
        return len(self.arrays["images"])

    def describe(self, batch_size: int) -> str:
        """Returns what it is; its batches take no memory worth telling."""
        megabytes = self.arrays["images"].nbytes >> 20
        return f"{self._name}: {len(self)} images, {megabytes} MB resident"

    def batches(self, plan: Plan, start: int = 0) -> Generator[jax.Array]:
        """Yields the indices i32[B] of each step."""
        rows = self._layout.rows(len(plan[0]))
        for step in range(start, len(plan)):
            yield self._layout.put_batch(plan[step][rows])

    def images(self, arrays: Any, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns canvases [B, H, W, 3] and sizes [B, 2]; every device takes its own rows."""
        return (
            self._layout.shard(jnp.take(arrays["images"], batch, axis=0)),
            self._layout.shard(jnp.take(arrays["sizes"], batch, axis=0)),
        )

    def indices(self, batch: jax.Array) -> jax.Array:
        """Returns the batch, which is the images' indices."""
        return batch

    def readable(self, batch: jax.Array) -> jax.Array:
        """Returns bool[B], all true: what can't be read has no index here."""
        return jnp.ones(batch.shape, bool)
