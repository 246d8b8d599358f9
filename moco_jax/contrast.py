"""InfoNCE: finding the key of a query among the keys of a dictionary (MoCo, eq. 1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from moco_jax.mesh import Layout


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

    The ring stays where it is: the queries are gathered (B x D, small), every device scores them
    against its own keys, and maximum and sum are combined.

    Args:
      queries: f32[B, D], unit vectors.
      keys: f32[B, D], unit vectors; no gradient passes.
      ring: f32[R, N, D], the dictionary's negatives, sharded over N; no gradient passes.
      temperature: T.
      layout: where arrays lie.
    """
    keys, ring = jax.lax.stop_gradient((keys, ring))
    positive = jnp.sum(queries * keys, axis=-1)
    gathered = layout.replicate(queries)
    negative = jnp.einsum("bd,rnd->brn", gathered, ring, precision="highest")
    negative = layout.shard(negative, axis=2)

    # The positive's logit joins by logaddexp: concatenating it would break the sharded axis.
    rest = jax.nn.logsumexp(negative / temperature, axis=(1, 2))
    loss = jnp.logaddexp(positive / temperature, rest) - positive / temperature
    hardest = jax.lax.stop_gradient(negative.max(axis=(1, 2)))
    return Contrast(
        loss=loss.mean(),
        accuracy=100.0 * jnp.mean(positive > hardest),
        positive_similarity=positive.mean(),
        negative_similarity=negative.mean(),
    )
