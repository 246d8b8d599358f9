"""The batch as the dictionary: the negatives of a query are the other keys of its own batch.

This is end-to-end training (MoCo, fig. 2a) with a trained key encoder, MoCo v3 with a momentum
encoder, and SimCLR's NT-Xent (Chen et al. 2020) with one encoder for both views. The dictionary is
as large as the batch and keeps nothing between steps.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.contrastive.info_nce import Contrast
from moco_jax.parallel.mesh import Layout


@dataclasses.dataclass(frozen=True)
class InBatch:
    """The other keys of the batch; with a shared encoder also the other queries, as in NT-Xent."""

    config: ConfigDict
    layout: Layout
    images: int = 0
    shardings = ()

    @property
    def num_negatives(self) -> int:
        return (self.config.batch_size - 1) * (2 if self._own_view else 1)

    @property
    def chance_loss(self) -> float:
        return math.log(self.num_negatives + 1)

    def init(self, key):
        return ()

    def look_up(self, queries, keys, entries, batch) -> Contrast:
        """Returns the cross-entropy of each query f32[B, D] over all keys f32[B, D] of the batch.

        The label of a query is its own key. Gradients pass through keys. Keys are gathered: B x D
        is small.
        """
        similarity = self._similarity(queries, keys)
        own = jnp.eye(len(queries), dtype=bool)
        positive = jnp.sum(queries * keys, axis=-1)
        others = jnp.where(own, -jnp.inf, similarity)
        if self._own_view:
            same_view = jnp.where(own, -jnp.inf, self._similarity(queries, queries))
            others = jnp.concatenate([others, same_view], axis=1)
        temperature = self.config.temperature
        logits = positive / temperature
        loss = jnp.logaddexp(logits, jax.nn.logsumexp(others / temperature, axis=1)) - logits
        real = jnp.isfinite(others)
        return Contrast(
            loss=loss.mean(),
            accuracy=100.0 * jnp.mean(positive > others.max(axis=1)),
            positive_similarity=positive.mean(),
            negative_similarity=jnp.sum(jnp.where(real, others, 0.0)) / real.sum(),
        )

    def update(self, entries, keys, batch):
        return ()

    def reach(self, steps: int) -> int:
        return 0

    def recall(self, entries, batch) -> jax.Array:
        raise ValueError("dictionary='in_batch' keeps no keys between steps")

    @property
    def _own_view(self) -> bool:
        return self.config.key_encoder == "shared"

    def _similarity(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Returns [B, B], one row a query, sharded over queries."""
        gathered = self.layout.replicate(keys)
        return self.layout.shard(jnp.einsum("bd,kd->bk", queries, gathered, precision="highest"))
