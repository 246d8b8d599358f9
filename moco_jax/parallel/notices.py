"""What one process knows and all must act on at the same step: carried by the step itself.

Each process puts its numbers on its own devices, and the step reduces them over all, so that every
process reads the same numbers from the metrics of the same step. No message is sent besides.
"""

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.parallel.mesh import Layout

_WORST, _COUNT = 0, 1


class Notices:
    """This process's numbers on its devices; copied again only when they change."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._shown: tuple[tuple[int, int], jax.Array] | None = None

    def put(self, *, stop: int, bad_images: int) -> jax.Array:
        """Returns i32[devices, 2].

        Args:
          stop: the number of the signal by which this process was asked to stop, 0 for none.
          bad_images: that this process has found.
        """
        numbers = (stop, bad_images)
        if self._shown is None or self._shown[0] != numbers:
            mine = np.zeros((len(self._layout.rows(self._layout.devices)), 2), np.int32)
            mine[0] = numbers  # on one device of this process, so that sums are right
            self._shown = numbers, self._layout.put_batch(mine)
        return self._shown[1]


def abstract(layout: Layout) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of what `Notices.put` gives."""
    return jax.ShapeDtypeStruct((layout.devices, 2), jnp.int32, sharding=layout.sharded())


def combined(notices: jax.Array) -> dict[str, jax.Array]:
    """Returns, inside jit, all processes' numbers as one: f32[] each."""
    return {
        "stop": notices[:, _WORST].max().astype(jnp.float32),
        "bad_images": notices[:, _COUNT].sum().astype(jnp.float32),
    }
