"""MoCo's dictionary: a queue of the last K keys, stored as a ring of key batches (MoCo, sec. 3.2).

The ring is [R, N, D], float32 or bfloat16. Each of its R = K / N rows holds the N keys of one step.
It is sharded over N exactly as the keys are. Each device writes its own keys into its own memory,
so the update needs no communication. The order is exactly first in, first out, and the row to
write follows from the step alone.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries.dictionary import StepIndices
from moco_jax.contrastive.info_nce import Contrast, info_nce
from moco_jax.parallel.mesh import Layout


def keys_per_step(config: ConfigDict) -> int:
    """Returns N, the keys that enter the queue at each step."""
    return config.batch_size * (2 if config.symmetric else 1)


@dataclasses.dataclass(frozen=True)
class Queue:
    """The keys of the last K / N steps; the number of training images does not matter."""

    config: ConfigDict
    layout: Layout
    images: int = 0

    @property
    def shardings(self):
        return self.layout.sharded(axis=1)

    @property
    def num_negatives(self) -> int:
        return self.config.queue_size

    @property
    def chance_loss(self) -> float:
        return math.log(self.num_negatives + 1)

    def init(self, key: jax.Array) -> jax.Array:
        """Returns a ring [R, N, D] of random unit vectors, as in the reference."""
        size, keys = self.config.queue_size, keys_per_step(self.config)
        if size % keys:
            raise ValueError(f"queue_size={size} must be a multiple of the {keys} keys of a step")
        shape = (self._rows, keys_per_step(self.config), self.config.model.dim)
        ring = jax.random.normal(key, shape, jnp.float32)
        unit = ring / jnp.linalg.norm(ring, axis=-1, keepdims=True)
        return unit.astype(self.config.queue_dtype)

    def look_up(self, queries, keys, ring, batch) -> Contrast:
        temperature = self.config.temperature
        return info_nce(queries, keys, ring, temperature=temperature, layout=self.layout)

    def update(self, ring: jax.Array, keys: jax.Array, batch: StepIndices) -> jax.Array:
        """Returns the ring with its oldest row replaced by the keys f32[N, D] of this step."""
        keys = jax.lax.stop_gradient(keys).astype(ring.dtype)
        row, start = batch.step % ring.shape[0], jnp.zeros_like(batch.step)
        return jax.lax.dynamic_update_slice(ring, keys[None], (row, start, start))

    def reach(self, steps: int) -> int:
        return min(steps, self._rows)

    def recall(self, ring: jax.Array, batch: StepIndices) -> jax.Array:
        return ring[batch.step % len(ring)]

    @property
    def _rows(self) -> int:
        return self.config.queue_size // keys_per_step(self.config)
