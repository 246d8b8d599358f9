"""The batch as the dictionary: a query's negatives are the other keys of its own batch.

End-to-end training (MoCo, fig. 2a) when the keys' encoder is trained as the queries' is, MoCo v3's
when it follows by momentum, and SimCLR's NT-Xent (Chen et al. 2020) when both are one encoder. The
dictionary is as large as the batch, and nothing of it outlives a step.
"""

import jax
import jax.numpy as jnp

from moco_jax.contrastive.info_nce import Contrast
from moco_jax.parallel.mesh import Layout


def contrast(
    queries: jax.Array, keys: jax.Array, *, temperature: float, own_view: bool, layout: Layout
) -> Contrast:
    """Returns cross-entropy of each query over all keys of the batch, label on its own key.

    Keys are gathered (B x D, small), and gradients pass through them.

    Args:
      queries: f32[B, D], unit vectors.
      keys: f32[B, D], unit vectors.
      temperature: T.
      own_view: whether the other queries are negatives too, 2B - 2 in all, as in NT-Xent.
      layout: where arrays lie.
    """
    similarity = _similarity(queries, keys, layout)
    own = jnp.eye(len(queries), dtype=bool)
    positive = jnp.sum(queries * keys, axis=-1)
    others = jnp.where(own, -jnp.inf, similarity)
    if own_view:
        same_view = jnp.where(own, -jnp.inf, _similarity(queries, queries, layout))
        others = jnp.concatenate([others, same_view], axis=1)
    logits = positive / temperature
    loss = jnp.logaddexp(logits, jax.nn.logsumexp(others / temperature, axis=1)) - logits
    real = jnp.isfinite(others)
    return Contrast(
        loss=loss.mean(),
        accuracy=100.0 * jnp.mean(positive > others.max(axis=1)),
        positive_similarity=positive.mean(),
        negative_similarity=jnp.sum(jnp.where(real, others, 0.0)) / real.sum(),
    )


def _similarity(queries: jax.Array, keys: jax.Array, layout: Layout) -> jax.Array:
    """Returns [B, B], a row a query, split over queries."""
    gathered = layout.replicate(keys)
    return layout.shard(jnp.einsum("bd,kd->bk", queries, gathered, precision="highest"))
