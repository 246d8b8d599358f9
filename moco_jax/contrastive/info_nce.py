"""InfoNCE: find the key of a query among the keys of a dictionary (MoCo, eq. 1)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moco_jax.contrastive.ring_scores import score_ring
from moco_jax.parallel.mesh import Layout

# The values of `config.loss_scale`: temperature T -> factor of the loss. With 2T (MoCo v3) the
# gradient by the cosine of a candidate is 2 (p - y), p its probability, y = 1 for the key.
LOSS_SCALES: dict[str, Callable[[float], float]] = {"none": lambda t: 1.0, "2T": lambda t: 2.0 * t}


class Contrast(NamedTuple):
    """The result of a look-up, each a mean over the batch: f32[].

    Attributes:
      loss: of the look-up.
      accuracy: percent of the queries whose most similar candidate is their own key.
      positive_similarity: mean cosine of a query and its key.
      negative_similarity: mean cosine of a query and its negatives.
    """

    loss: jax.Array
    accuracy: jax.Array
    positive_similarity: jax.Array
    negative_similarity: jax.Array


def info_nce(
    queries: jax.Array, keys: jax.Array, ring: jax.Array, *, temperature: float, layout: Layout
) -> Contrast:
    """Returns the cross-entropy of each query over its key and the ring, with its key as label.

    Args:
      queries: f32[B, D], unit vectors.
      keys: f32[B, D], unit vectors; no gradient passes.
      ring: [R, N, D], the negatives, sharded over N; no gradient passes.
      temperature: T.
      layout: the devices and shardings.
    """
    keys = jax.lax.stop_gradient(keys)
    positive = jnp.sum(queries * keys, axis=-1)
    gathered = layout.replicate(queries)
    scores = score_ring(gathered, ring, temperature=temperature, layout=layout)

    # logaddexp adds the positive: concatenation would break the sharded axis.
    loss = jnp.logaddexp(positive / temperature, scores.log_sum) - positive / temperature
    mean_key = jax.lax.stop_gradient(ring.mean(axis=(0, 1), dtype=queries.dtype))
    return Contrast(
        loss=loss.mean(),
        accuracy=100.0 * jnp.mean(positive > scores.hardest),
        positive_similarity=positive.mean(),
        negative_similarity=jnp.sum(queries.mean(axis=0) * mean_key),
    )
