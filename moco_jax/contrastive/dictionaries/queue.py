"""MoCo's dictionary: a queue of the last K keys, stored as a ring of key batches (MoCo, sec. 3.2).

The ring is [R, N, D], float32 or bfloat16. Each of its R = K / N rows holds the N keys of one step.
It is sharded over N exactly as the keys are. Each device writes its own keys into its own memory,
so the update needs no communication. The order is exactly first in, first out, and the row to
write follows from the step alone.
"""

import dataclasses
import math
from typing import Self

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries.dictionary import StepIndices
from moco_jax.contrastive.info_nce import Contrast, info_nce
from moco_jax.parallel.mesh import Layout


def keys_per_step(config: ConfigDict) -> int:
    """Returns N, the keys that enter the queue at each step."""
    return config.batch_size * (2 if config.symmetric else 1)


@dataclasses.dataclass(frozen=True)
class Queue:
    """The keys of the last K / N steps.

    Attributes:
      size: K, keys in the queue; a multiple of `keys_per_step`.
      keys_per_step: N.
      dim: D, length of a key.
      temperature: T of InfoNCE.
      layout: the devices and shardings.
      dtype: of the stored keys.
    """

    size: int
    keys_per_step: int
    dim: int
    temperature: float
    layout: Layout
    dtype: DTypeLike = jnp.float32

    @classmethod
    def from_config(cls, config: ConfigDict, layout: Layout, images: int) -> Self:
        """Returns the queue of a validated config; the number of training images is not used."""
        return cls(
            size=config.queue_size,
            keys_per_step=keys_per_step(config),
            dim=config.model.dim,
            temperature=config.temperature,
            layout=layout,
            dtype=config.queue_dtype,
        )

    @property
    def shardings(self) -> NamedSharding:
        return self.layout.sharded(axis=1)

    @property
    def num_negatives(self) -> int:
        return self.size

    @property
    def chance_loss(self) -> float:
        return math.log(self.size + 1)

    def init(self, key: jax.Array) -> jax.Array:
        """Returns a ring [R, N, D] of random unit vectors, as in the reference.

        Raises:
          ValueError: if the size is not a multiple of the keys of a step.
        """
        if self.size <= 0 or self.size % self.keys_per_step:
            raise ValueError(
                f"queue_size={self.size} must be a multiple of the {self.keys_per_step} keys of a "
                "step"
            )
        rows = self.size // self.keys_per_step
        ring = jax.random.normal(key, (rows, self.keys_per_step, self.dim), jnp.float32)
        return (ring / jnp.linalg.norm(ring, axis=-1, keepdims=True)).astype(self.dtype)

    def look_up(
        self, queries: jax.Array, keys: jax.Array, ring: jax.Array, batch: StepIndices
    ) -> Contrast:
        """Returns InfoNCE of queries f32[B, D] over their keys and the ring."""
        return info_nce(queries, keys, ring, temperature=self.temperature, layout=self.layout)

    def update(self, ring: jax.Array, keys: jax.Array, batch: StepIndices) -> jax.Array:
        """Returns the ring with its oldest row replaced by the keys f32[N, D] of this step."""
        keys = jax.lax.stop_gradient(keys).astype(ring.dtype)
        row, start = batch.step % ring.shape[0], jnp.zeros_like(batch.step)
        return jax.lax.dynamic_update_slice(ring, keys[None], (row, start, start))

    def reach(self, steps: int) -> int:
        return min(steps, self.size // self.keys_per_step)

    def recall(self, ring: jax.Array, batch: StepIndices) -> jax.Array:
        return ring[batch.step % len(ring)]
