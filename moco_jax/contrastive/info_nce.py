"""InfoNCE: finding the key of a query among the keys of a dictionary (MoCo, eq. 1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from moco_jax.contrastive.negatives import negatives
from moco_jax.parallel.mesh import Layout


class Contrast(NamedTuple):
    """A look-up's result, each a mean over the batch: f32[]."""

    loss: jax.Array
    accuracy: jax.Array  # percent of the queries that are nearest to their own key
    positive_similarity: jax.Array
    negative_similarity: jax.Array


def info_nce(
    queries: jax.Array, keys: jax.Array, ring: jax.Array, *, temperature: float, layout: Layout
) -> Contrast:
    """Returns cross-entropy of each query over its key and the ring's, label on its key.

    Args:
      queries: f32[B, D], unit vectors.
      keys: f32[B, D], unit vectors; no gradient passes.
      ring: [R, N, D], the dictionary's negatives, sharded over N; no gradient passes.
      temperature: T.
      layout: where arrays lie.
    """
    keys = jax.lax.stop_gradient(keys)
    positive = jnp.sum(queries * keys, axis=-1)
    gathered = layout.replicate(queries)
    rest = negatives(gathered, ring, temperature=temperature, layout=layout)

    # The positive's logit joins by logaddexp: concatenating it would break the sharded axis.
    loss = jnp.logaddexp(positive / temperature, rest.log_sum) - positive / temperature
    mean_key = jax.lax.stop_gradient(ring.mean(axis=(0, 1), dtype=queries.dtype))
    return Contrast(
        loss=loss.mean(),
        accuracy=100.0 * jnp.mean(positive > rest.hardest),
        positive_similarity=positive.mean(),
        negative_similarity=jnp.sum(queries.mean(axis=0) * mean_key),
    )
