"""The memory bank: a slot for each training image (Wu et al. 2018; MoCo, fig. 2b).

A slot holds what the encoder made of its image whenever that was last seen, an epoch ago on
average, mixed with what it held before. A query's positive is its image's slot; its negatives are
slots drawn anew at each step, the same for all queries of the batch.

Departures from Wu et al.: they draw for each query apart, which costs a gather of B x K slots;
their proximal term, a penalty on how far a feature moves in an epoch, is left out; and with NCE
their code takes Z from the first batch alone.

`features` is f32[P, D], sharded over P: N images, filled up to a multiple of the batch so that it
divides by whatever number of devices divides the batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moco_jax.contrastive import nce
from moco_jax.contrastive.info_nce import Contrast, info_nce
from moco_jax.parallel.mesh import Layout

_ESTIMATED_IN = 10  # first steps, whose mean is Z from then on


class Batch(NamedTuple):
    """Which batch is looked up: the step i32[], and the images' indices i32[B]."""

    step: jax.Array
    indices: jax.Array


class Bank(NamedTuple):
    """What a run with NCE keeps.

    Attributes:
      features: f32[P, D], unit vectors.
      partition: Z, f32[]; 0 at the start.
    """

    features: Any
    partition: Any


class Sampling(NamedTuple):
    """How negatives are drawn, and what of.

    Attributes:
      seed: of the draws, with the step.
      images: N.
      negatives: K.
    """

    seed: int
    images: int
    negatives: int


def init(key: jax.Array, *, images: int, batch_size: int, dim: int) -> jax.Array:
    """Returns features f32[P, D] of random unit vectors, P the next multiple of the batch."""
    rows = -(-images // batch_size) * batch_size
    features = jax.random.normal(key, (rows, dim), jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def draw_others(sampling: Sampling, batch: Batch) -> jax.Array:
    """Returns K indices, uniform over the images that are not in the batch, with replacement.

    So a query's own slot is never among its negatives. The draw skips over the batch's indices. If
    one comes twice there (as a stand-in for an unreadable image), some others are not drawn.
    """
    excluded = jnp.sort(batch.indices)
    left = sampling.images - len(excluded)
    drawn = jax.random.randint(_key(sampling, batch), (sampling.negatives,), 0, left)
    skipped = jnp.searchsorted(excluded - jnp.arange(len(excluded)), drawn, side="right")
    return drawn + skipped


def draw_noise(sampling: Sampling, batch: Batch) -> jax.Array:
    """Returns K indices, uniform over all images, with replacement: the noise of NCE."""
    key = _key(sampling, batch)
    return jax.random.randint(key, (sampling.negatives,), 0, sampling.images)


def _key(sampling: Sampling, batch: Batch) -> jax.Array:
    # Key 0 of the root made the weights, key 1 makes the views.
    root = jax.random.fold_in(jax.random.key(sampling.seed), 2)
    return jax.random.fold_in(root, batch.step)


def mix(features: jax.Array, keys: jax.Array, indices: jax.Array, momentum: float) -> jax.Array:
    """Returns features [P, D] with the slots of this batch moved towards keys f32[B, D].

    Of an image that comes twice (as a stand-in for an unreadable one) the first row counts.
    """
    mixed = momentum * features[indices] + (1 - momentum) * keys
    mixed = mixed / jnp.maximum(jnp.linalg.norm(mixed, axis=-1, keepdims=True), 1e-12)
    first = jnp.argmax(indices[:, None] == indices[None, :], axis=1) == jnp.arange(len(indices))
    slots = jnp.where(first, indices, len(features))  # beyond the end: dropped
    return features.at[slots].set(mixed.astype(features.dtype), mode="drop")


def look_up(
    queries: jax.Array,
    features: jax.Array,
    batch: Batch,
    *,
    sampling: Sampling,
    temperature: float,
    layout: Layout,
) -> Contrast:
    """Returns InfoNCE of queries f32[B, D] over their own slots and K others."""
    # As a ring of rows, so that a long one is summed up a few rows at a time.
    rows = _rows(sampling.negatives // layout.devices)
    ring = layout.shard(features[draw_others(sampling, batch).reshape(rows, -1)], axis=1)
    positives = layout.shard(features[batch.indices])
    return info_nce(queries, positives, ring, temperature=temperature, layout=layout)


def _rows(negatives: int) -> int:
    """Returns into how many rows a device's negatives divide, of about a thousand each."""
    return next(rows for rows in range(max(1, negatives // 1024), 0, -1) if negatives % rows == 0)


def look_up_nce(
    queries: jax.Array,
    bank: Bank,
    batch: Batch,
    *,
    sampling: Sampling,
    temperature: float,
    layout: Layout,
) -> Contrast:
    """Returns NCE of queries f32[B, D] on their own slots and K of noise."""
    positives = layout.shard(bank.features[batch.indices])
    similarity = _to_noise(queries, bank, batch, sampling, layout)
    own = batch.indices[:, None] == draw_noise(sampling, batch)[None, :]
    z = _partition(bank, similarity, batch, sampling, temperature)
    return nce.nce(
        queries, positives, similarity, own, z, temperature=temperature, images=sampling.images
    )


def update_nce(
    bank: Bank,
    keys: jax.Array,
    batch: Batch,
    *,
    momentum: float,
    sampling: Sampling,
    temperature: float,
    layout: Layout,
) -> Bank:
    """Returns the bank with this batch mixed in; in the first steps, with a better Z."""

    def estimate():
        similarity = _to_noise(keys, bank, batch, sampling, layout)
        return _partition(bank, similarity, batch, sampling, temperature)

    z = jax.lax.cond(batch.step < _ESTIMATED_IN, estimate, lambda: bank.partition)
    return Bank(mix(bank.features, keys, batch.indices, momentum), z)


def _to_noise(
    queries: jax.Array, bank: Bank, batch: Batch, sampling: Sampling, layout: Layout
) -> jax.Array:
    noise = layout.shard(jax.lax.stop_gradient(bank.features)[draw_noise(sampling, batch)])
    return nce.similarities(queries, noise, layout)


def _partition(
    bank: Bank, similarity: jax.Array, batch: Batch, sampling: Sampling, temperature: float
) -> jax.Array:
    """Returns Z: the mean over the first steps so far, this one included; constant after them."""
    here = nce.partition(similarity, temperature=temperature, images=sampling.images)
    mean = bank.partition + (here - bank.partition) / (batch.step + 1)
    return jnp.where(batch.step < _ESTIMATED_IN, mean, bank.partition)
