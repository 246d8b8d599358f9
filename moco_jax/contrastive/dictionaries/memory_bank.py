"""The memory bank: one slot for each training image (Wu et al. 2018; MoCo, fig. 2b).

A slot holds a moving average of the features that the encoder returned for its image. The image was
last seen an epoch ago on average. The positive of a query is the slot of its image. The negatives
are slots drawn anew at each step, the same for all queries of the batch.

Departures from Wu et al.: they draw for each query apart, which costs a gather of B x K slots;
their proximal term, a penalty on how far a feature moves in an epoch, is left out; and with NCE
their code estimates Z from the first batch alone.

`features` is f32[P, D], sharded over P. P is the number of images, rounded up to a multiple of the
batch, so every number of devices that divides the batch divides P too.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moco_jax.contrastive import nce
from moco_jax.contrastive.dictionaries.dictionary import StepIndices
from moco_jax.contrastive.info_nce import Contrast, info_nce
from moco_jax.parallel.mesh import Layout

_PARTITION_STEPS = 10  # Z is the mean estimate of this many first steps


@dataclasses.dataclass(frozen=True)
class MemoryBank:
    """A slot for each training image, with InfoNCE. The entries are `features`."""

    config: ConfigDict
    layout: Layout
    images: int

    @property
    def shardings(self):
        return self.layout.sharded()

    @property
    def num_negatives(self) -> int:
        return self.config.bank.negatives

    @property
    def chance_loss(self) -> float:
        return math.log(self.num_negatives + 1)

    def init(self, key: jax.Array) -> jax.Array:
        """Returns features f32[P, D] of random unit vectors."""
        rows = -(-self.images // self.config.batch_size) * self.config.batch_size
        features = jax.random.normal(key, (rows, self.config.model.dim), jnp.float32)
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    def look_up(self, queries, keys, features, batch) -> Contrast:
        """Returns InfoNCE of queries f32[B, D] over the slots of their images and K others."""
        # A ring of rows, so that a long one is summed a few rows at a time.
        rows = _rows(self.num_negatives // self.layout.devices)
        drawn = draw_others(self.config, self.images, batch).reshape(rows, -1)
        ring = self.layout.shard(features[drawn], axis=1)
        positives = self.layout.shard(features[batch.indices])
        temperature = self.config.temperature
        return info_nce(queries, positives, ring, temperature=temperature, layout=self.layout)

    def update(self, features: jax.Array, keys: jax.Array, batch: StepIndices) -> jax.Array:
        """Returns the features with the slots of this batch moved towards the keys f32[B, D]."""
        return mix(features, keys, batch.indices, self.config.bank.momentum)

    def reach(self, steps: int) -> int:
        """Returns the steps done in this epoch; within an epoch an image is seen once."""
        per_epoch = self.images // self.config.batch_size
        return (steps - 1) % per_epoch + 1 if steps else 0

    def recall(self, features: jax.Array, batch: StepIndices) -> jax.Array:
        return features[batch.indices]


class NCEEntries(NamedTuple):
    """The entries of a bank with NCE.

    Attributes:
      features: f32[P, D], unit vectors.
      partition: Z, f32[]; 0 at the start.
    """

    features: Any
    partition: Any


@dataclasses.dataclass(frozen=True)
class MemoryBankNCE:
    """A slot for each training image, with noise-contrastive estimation."""

    config: ConfigDict
    layout: Layout
    images: int

    @property
    def shardings(self) -> NCEEntries:
        return NCEEntries(self.layout.sharded(), self.layout.replicated)

    @property
    def num_negatives(self) -> int:
        return self.config.bank.negatives

    @property
    def chance_loss(self) -> float:
        noise = self.num_negatives
        return math.log(noise + 1) + noise * math.log1p(1 / noise)

    def init(self, key: jax.Array) -> NCEEntries:
        return NCEEntries(self._bank.init(key), jnp.zeros(()))

    def look_up(self, queries, keys, entries, batch) -> Contrast:
        """Returns NCE of queries f32[B, D] on the slots of their images and K noise slots."""
        positives = self.layout.shard(entries.features[batch.indices])
        similarity = self._noise_similarity(queries, entries, batch)
        own = batch.indices[:, None] == draw_noise(self.config, self.images, batch)[None, :]
        z = self._partition(entries, similarity, batch)
        options = dict(temperature=self.config.temperature, images=self.images)
        return nce.nce(queries, positives, similarity, own, z, **options)

    def update(self, entries: NCEEntries, keys: jax.Array, batch: StepIndices) -> NCEEntries:
        """Returns the entries with this batch mixed in; the first steps also improve Z."""

        def estimate():
            similarity = self._noise_similarity(keys, entries, batch)
            return self._partition(entries, similarity, batch)

        z = jax.lax.cond(batch.step < _PARTITION_STEPS, estimate, lambda: entries.partition)
        return NCEEntries(self._bank.update(entries.features, keys, batch), z)

    def reach(self, steps: int) -> int:
        return self._bank.reach(steps)

    def recall(self, entries: NCEEntries, batch: StepIndices) -> jax.Array:
        return self._bank.recall(entries.features, batch)

    @property
    def _bank(self) -> MemoryBank:
        return MemoryBank(self.config, self.layout, self.images)

    def _noise_similarity(self, queries, entries: NCEEntries, batch: StepIndices) -> jax.Array:
        """Returns f32[B, K], the similarities of queries to the noise."""
        drawn = draw_noise(self.config, self.images, batch)
        noise = self.layout.shard(jax.lax.stop_gradient(entries.features)[drawn])
        return nce.similarities(queries, noise, self.layout)

    def _partition(self, entries: NCEEntries, similarity, batch: StepIndices) -> jax.Array:
        """Returns Z: the mean of the first steps' estimates so far, then constant."""
        options = dict(temperature=self.config.temperature, images=self.images)
        mean = entries.partition + (nce.partition(similarity, **options) - entries.partition) / (
            batch.step + 1
        )
        return jnp.where(batch.step < _PARTITION_STEPS, mean, entries.partition)


def draw_others(config: ConfigDict, images: int, batch: StepIndices) -> jax.Array:
    """Returns K indices, uniform over the images outside the batch, with replacement.

    So the slot of a query is never among its negatives. The draw skips the indices of the batch. If
    an index is there twice (it replaces an unreadable image), some other images are not drawn.
    """
    excluded = jnp.sort(batch.indices)
    left = images - len(excluded)
    drawn = jax.random.randint(_key(config, batch), (config.bank.negatives,), 0, left, jnp.int32)
    skipped = jnp.searchsorted(excluded - jnp.arange(len(excluded)), drawn, side="right")
    return drawn + skipped


def draw_noise(config: ConfigDict, images: int, batch: StepIndices) -> jax.Array:
    """Returns K indices, uniform over all images, with replacement: the noise of NCE."""
    return jax.random.randint(_key(config, batch), (config.bank.negatives,), 0, images, jnp.int32)


def _key(config: ConfigDict, batch: StepIndices) -> jax.Array:
    # Key 0 of the root draws the weights, key 1 the views.
    root = jax.random.fold_in(jax.random.key(config.seed), 2)
    return jax.random.fold_in(root, batch.step)


def mix(features: jax.Array, keys: jax.Array, indices: jax.Array, momentum: float) -> jax.Array:
    """Returns features [P, D] with the slots `indices` i32[B] moved towards keys f32[B, D].

    If an index is there twice (it replaces an unreadable image), its first row counts.
    """
    mixed = momentum * features[indices] + (1 - momentum) * keys
    mixed = mixed / jnp.maximum(jnp.linalg.norm(mixed, axis=-1, keepdims=True), 1e-12)
    first = jnp.argmax(indices[:, None] == indices[None, :], axis=1) == jnp.arange(len(indices))
    slots = jnp.where(first, indices, len(features))  # beyond the end: dropped
    return features.at[slots].set(mixed.astype(features.dtype), mode="drop")


def _rows(negatives: int) -> int:
    """Returns the number of rows, of about a thousand negatives each, for one device."""
    return next(rows for rows in range(max(1, negatives // 1024), 0, -1) if negatives % rows == 0)
