"""Numbers of one process that all processes must read at the same step, such as a stop signal.

Each process puts its numbers on its own devices, and the train step reduces them over all devices.
Every process then reads the same numbers from the metrics of the same step; no other message is
sent.
"""

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.parallel.mesh import Layout


class Notices:
    """Puts this process's numbers on its devices; copies them only when they change."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._last: tuple[tuple[int, int], jax.Array] | None = None

    def put(self, *, stop: int, bad_images: int) -> jax.Array:
        """Returns the notices of all processes, i32[devices, 2], split over the devices.

        Args:
          stop: number of the signal that asked this process to stop; 0: none.
          bad_images: number of unreadable images that this process has found.
        """
        numbers = (stop, bad_images)
        if self._last is None or self._last[0] != numbers:
            own = np.zeros((len(self._layout.rows(self._layout.devices)), 2), np.int32)
            own[0] = numbers  # on one device only, so that a sum over devices counts them once
            self._last = numbers, self._layout.put_batch(own)
        return self._last[1]


def abstract(layout: Layout) -> jax.ShapeDtypeStruct:
    """Returns the shape, dtype and sharding of the result of `Notices.put`."""
    return jax.ShapeDtypeStruct((layout.devices, 2), jnp.int32, sharding=layout.sharded())


def combined(notices: jax.Array) -> dict[str, jax.Array]:
    """Returns the largest `stop` and the sum of `bad_images`, f32[] each; for use inside jit."""
    return {
        "stop": notices[:, 0].max().astype(jnp.float32),
        "bad_images": notices[:, 1].sum().astype(jnp.float32),
    }
