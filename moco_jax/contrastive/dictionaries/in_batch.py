"""The batch as the dictionary: the negatives of a query are the other keys of its own batch.

This is end-to-end training (MoCo, fig. 2a) with a trained key encoder, MoCo v3 with a momentum
encoder, and SimCLR's NT-Xent (Chen et al. 2020) with one encoder for both views. The dictionary is
as large as the batch and keeps nothing between steps.
"""

import dataclasses
import math
from typing import Self

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.contrastive.dictionaries.dictionary import StepIndices
from moco_jax.contrastive.info_nce import Contrast
from moco_jax.parallel.mesh import Layout


@dataclasses.dataclass(frozen=True)
class InBatch:
    """The other keys of the batch. Gradients pass through keys.

    Attributes:
      batch_size: B.
      temperature: T of InfoNCE.
      own_view: whether the other queries are negatives too, 2B - 2 in all, as in NT-Xent.
      layout: the devices and shardings.
    """

    batch_size: int
    temperature: float
    own_view: bool
    layout: Layout

    @classmethod
    def from_config(cls, config: ConfigDict, layout: Layout, images: int) -> Self:
        """Returns the dictionary of a validated config; the number of images is not used."""
        own_view = config.key_encoder == "shared"
        return cls(config.batch_size, config.temperature, own_view, layout)

    @property
    def shardings(self) -> tuple[()]:
        return ()

    @property
    def num_negatives(self) -> int:
        return (self.batch_size - 1) * (2 if self.own_view else 1)

    @property
    def chance_loss(self) -> float:
        return math.log(self.num_negatives + 1)

    def init(self, key: jax.Array) -> tuple[()]:
        return ()

    def look_up(
        self, queries: jax.Array, keys: jax.Array, entries: tuple[()], batch: StepIndices
    ) -> Contrast:
        """Returns the cross-entropy of each query f32[B, D] over all keys f32[B, D] of the batch.

        The label of a query is its own key. Keys are gathered: B x D is small.
        """
        similarity = self._similarity(queries, keys)
        own = jnp.eye(len(queries), dtype=bool)
        positive = jnp.sum(queries * keys, axis=-1)
        others = jnp.where(own, -jnp.inf, similarity)
        if self.own_view:
            same_view = jnp.where(own, -jnp.inf, self._similarity(queries, queries))
            others = jnp.concatenate([others, same_view], axis=1)
        logits = positive / self.temperature
        loss = jnp.logaddexp(logits, jax.nn.logsumexp(others / self.temperature, axis=1)) - logits
        real = jnp.isfinite(others)
        return Contrast(
            loss=loss.mean(),
            accuracy=100.0 * jnp.mean(positive > others.max(axis=1)),
            positive_similarity=positive.mean(),
            negative_similarity=jnp.sum(jnp.where(real, others, 0.0)) / real.sum(),
        )

    def update(self, entries: tuple[()], keys: jax.Array, batch: StepIndices) -> tuple[()]:
        return ()

    def reach(self, steps: int) -> int:
        return 0

    def recall(self, entries: tuple[()], batch: StepIndices) -> jax.Array:
        raise ValueError("the in_batch dictionary keeps no keys between steps")

    def _similarity(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Returns [B, B], one row a query, sharded over queries."""
        gathered = self.layout.replicate(keys)
        return self.layout.shard(jnp.einsum("bd,kd->bk", queries, gathered, precision="highest"))
