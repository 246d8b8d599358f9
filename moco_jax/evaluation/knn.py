"""Weighted nearest-neighbour classification (Wu et al. 2018; the CIFAR demo of MoCo)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moco_jax.mesh import Layout

_QUERIES = 256  # classified at once: bounds the similarities to 256 x bank


def knn_top1(
    queries: np.ndarray,
    query_labels: np.ndarray,
    bank: np.ndarray,
    bank_labels: np.ndarray,
    *,
    k: int,
    temperature: float,
    layout: Layout,
) -> float:
    """Returns the percentage of queries whose neighbours vote for their class.

    Each of the k nearest by cosine votes for its class with exp(similarity / temperature). The
    bank is split over the devices; each finds its own nearest, and the nearest of these are taken,
    so the result is exact. Every process holds all features and gets the result.

    Args:
      queries: f32[M, F].
      query_labels: i32[M].
      bank: f32[N, F].
      bank_labels: i32[N].
      k: neighbours; at most N are taken.
      temperature: T of the votes.
      layout: where arrays lie.
    """
    shards = layout.devices
    padded = -(-len(bank) // shards) * shards
    classes = int(max(bank_labels.max(), query_labels.max())) + 1
    bank = _fill(_unit(bank), padded).reshape(shards, -1, bank.shape[1])
    labels = _fill(bank_labels.astype(np.int32), padded).reshape(shards, -1)
    real = _fill(np.ones(len(bank_labels), bool), padded).reshape(shards, -1)
    bank, labels, real = layout.put((bank, labels, real), layout.sharded())
    correct = 0
    for start in range(0, len(queries), _QUERIES):
        block = _fill(_unit(queries[start : start + _QUERIES]), _QUERIES)
        votes = _classify(
            layout.put(block, layout.replicated),
            bank,
            labels,
            real,
            k=min(k, len(bank_labels)),
            temperature=temperature,
            classes=classes,
            layout=layout,
        )
        truth = query_labels[start : start + _QUERIES]
        correct += int(np.sum(np.asarray(votes)[: len(truth)] == truth))
    return 100.0 * correct / len(queries)


@functools.partial(jax.jit, static_argnames=("k", "temperature", "classes", "layout"))
def _classify(
    queries, bank, labels, real, *, k: int, temperature: float, classes: int, layout: Layout
):
    """Returns classes i32[M] of queries [M, F], given bank [shards, n, F], labels, real [s, n]."""
    similarity = jnp.einsum("mf,snf->msn", queries, bank, precision="highest")
    similarity = jnp.where(real[None], similarity, -jnp.inf)
    nearest, index = jax.lax.top_k(similarity, min(k, bank.shape[1]))
    shard = jnp.arange(bank.shape[0])[None, :, None]
    neighbours = labels[shard, index].reshape(len(queries), -1)
    nearest, best = jax.lax.top_k(nearest.reshape(len(queries), -1), k)
    neighbours = jnp.take_along_axis(neighbours, best, axis=1)
    # Less the similarity's maximum, lest small temperatures overflow; the winner is the same.
    weights = jnp.exp((nearest - 1.0) / temperature)
    votes = jax.nn.one_hot(neighbours, classes) * weights[..., None]
    return layout.replicate(votes.sum(axis=1).argmax(axis=-1))


def _unit(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return (features / np.maximum(norms, 1e-12)).astype(np.float32)


def _fill(x: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((length - len(x), *x.shape[1:]), x.dtype)])
