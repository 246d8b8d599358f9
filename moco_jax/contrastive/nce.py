"""Noise-contrastive estimation: is a slot the query's own or noise? (Wu et al. 2018, sec. 3.3).

A softmax over all N images has P(i|q) = exp(s_i / T) / Z, where s_i is the similarity of the query
to the slot of image i. NCE replaces it with one binary choice for each slot of a small sample: is
it the query's own slot, or one of K noise slots drawn uniformly from all N? The odds are P(i|q) to
K / N.
"""

import jax
import jax.numpy as jnp

from moco_jax.contrastive.info_nce import Contrast
from moco_jax.parallel.mesh import Layout


def similarities(queries: jax.Array, noise: jax.Array, layout: Layout) -> jax.Array:
    """Returns f32[B, K] of queries f32[B, D] to noise f32[K, D], sharded over K as the noise is."""
    whole = layout.replicate(queries)
    return layout.shard(jnp.einsum("bd,kd->bk", whole, noise, precision="highest"), axis=1)


def partition(similarity: jax.Array, *, temperature: float, images: int) -> jax.Array:
    """Returns an estimate of Z, f32[], from the similarities f32[B, K] to noise.

    All queries share one Z: Wu et al. treat it as a constant of the data set.
    """
    return images * jnp.exp(jax.lax.stop_gradient(similarity) / temperature).mean()


def nce(
    queries: jax.Array,
    positives: jax.Array,
    similarity: jax.Array,
    own: jax.Array,
    partition: jax.Array,
    *,
    temperature: float,
    images: int,
) -> Contrast:
    """Returns the cross-entropy of the K + 1 binary choices of a query, summed over them.

    Args:
      queries: f32[B, D], unit vectors.
      positives: f32[B, D], the slots of the queries' images; no gradient passes.
      similarity: f32[B, K], of the queries to the noise.
      own: bool[B, K], where the noise is the query's own slot; `accuracy` leaves these out.
      partition: Z, f32[].
      temperature: T.
      images: N, of the training set.
    """
    positive = jnp.sum(queries * jax.lax.stop_gradient(positives), axis=-1)
    even = jnp.log(partition) + jnp.log(similarity.shape[1] / images)  # the logit of even odds
    found = jax.nn.softplus(even - positive / temperature)
    noise = jax.nn.softplus(similarity / temperature - even).sum(axis=1)
    return Contrast(
        loss=(found + noise).mean(),
        accuracy=100.0 * jnp.mean(positive > jnp.where(own, -jnp.inf, similarity).max(axis=1)),
        positive_similarity=positive.mean(),
        negative_similarity=similarity.mean(),
    )
