"""The queries against all negatives of a ring, as the few numbers a query that the loss needs.

The ring stays where it is: the queries (B x D, small) are whole on every device, each scores them
against its own keys, and maxima and sums are combined.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moco_jax.parallel.mesh import Layout

_PLAIN = 2**26  # similarities on a device, 256 MB; above, they are never all in memory at once
_AT_ONCE = 2**12  # keys of a device that a pass of the scan takes


class Negatives(NamedTuple):
    """What a query is told of its negatives: f32[B] each."""

    log_sum: jax.Array  # log of the sum of exp(similarity / T)
    hardest: jax.Array  # the largest similarity; no gradient passes


def negatives(
    queries: jax.Array, ring: jax.Array, *, temperature: float, layout: Layout
) -> Negatives:
    """Returns the ring's answer to each query, by a matrix of similarities or by a scan.

    Args:
      queries: f32[B, D], unit vectors, whole on every device.
      ring: [R, N, D], float32 or bfloat16, sharded over N; no gradient passes.
      temperature: T.
      layout: where arrays lie.
    """
    ring = jax.lax.stop_gradient(ring)
    similarities = queries.shape[0] * ring.shape[0] * ring.shape[1] // layout.devices
    way = plain if similarities <= _PLAIN else scanned
    return way(queries, ring, temperature, layout)


def plain(queries: jax.Array, ring: jax.Array, temperature: float, layout: Layout) -> Negatives:
    """Returns `negatives` by the matrix of all similarities, B x K."""
    similarity = jnp.einsum("bd,rnd->brn", queries, ring, precision="highest")
    similarity = layout.shard(similarity, axis=2)
    return Negatives(
        log_sum=jax.nn.logsumexp(similarity / temperature, axis=(1, 2)),
        hardest=jax.lax.stop_gradient(similarity.max(axis=(1, 2))),
    )


def scanned(queries: jax.Array, ring: jax.Array, temperature: float, layout: Layout) -> Negatives:
    """Returns `negatives` by one pass over the ring, a few keys at a time.

    Keys get no gradient, and a query's is the mean of all keys, weighted by its fraction
    of the sum. So the pass that sums up takes that mean along, and nothing of size K is kept or computed
    again: what remains is f32[B, D].
    """
    return _scanned(queries, ring, temperature, layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _scanned(queries: jax.Array, ring: jax.Array, temperature: float, layout: Layout) -> Negatives:
    return _forward(queries, ring, temperature, layout)[0]


def _forward(
    queries: jax.Array, ring: jax.Array, temperature: float, layout: Layout
) -> tuple[Negatives, jax.Array]:
    """Returns the answer, and the mean key f32[B, D] of which the gradient is made."""
    rows, keys, dim = ring.shape
    shards, batch = layout.devices, queries.shape[0]
    together, stored = _rows_together(rows, keys // shards), _stored(ring)

    def take_in(number, sums):
        """Adds some rows' keys to each shard's maximum, sum and weighted sum."""
        largest, total, weighted = sums
        # A slice in each pass: a scan's blocks are another array, for which the ring is copied.
        block = _read(jax.lax.dynamic_slice_in_dim(stored, number * together, together))
        block = layout.shard(block.reshape(together, shards, keys // shards, dim), axis=1)
        logits = jnp.einsum("bd,csnd->bscn", queries, block, precision="highest") / temperature
        new = jnp.maximum(largest, logits.max(axis=(2, 3)))
        weights, shrink = jnp.exp(logits - new[:, :, None, None]), jnp.exp(largest - new)
        total = total * shrink + weights.sum(axis=(2, 3))
        added = jnp.einsum("bscn,csnd->bsd", weights, block, precision="highest")
        return new, total, weighted * shrink[:, :, None] + added

    # Each shard has a sum of its own until the end: one reduction over devices, not one a pass.
    nothing = (
        jnp.full((batch, shards), -jnp.inf, queries.dtype),
        jnp.zeros((batch, shards), queries.dtype),
        jnp.zeros((batch, shards, dim), queries.dtype),
    )
    sums = jax.lax.fori_loop(0, rows // together, take_in, layout.shard(nothing, axis=1))
    largest, total, weighted = sums

    hardest = largest.max(axis=1)
    scale = jnp.exp(largest - hardest[:, None])
    total = (total * scale).sum(axis=1)
    mean_key = (weighted * scale[:, :, None]).sum(axis=1) / total[:, None]
    return Negatives(hardest + jnp.log(total), hardest * temperature), mean_key


def _backward(temperature: float, layout: Layout, mean_key: jax.Array, gradient: Negatives):
    return gradient.log_sum[:, None] * mean_key / temperature, None  # no gradient for the ring


_scanned.defvjp(_forward, _backward)


def _stored(ring: jax.Array) -> jax.Array:
    """Returns the ring, one of bfloat16 as its bits.

    On a CPU, which has no bfloat16 arithmetic, XLA would make all of it float32 before the loop.
    """
    if ring.dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(ring, jnp.uint16)
    return ring


def _read(block: jax.Array) -> jax.Array:
    """Returns a part of what `_stored` gave as float32, of which bfloat16 is the upper half."""
    if block.dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(block.astype(jnp.uint32) << 16, jnp.float32)
    return block


def _rows_together(rows: int, keys: int) -> int:
    """Returns the most rows that divide the ring and have at most `_AT_ONCE` keys of a shard."""
    most = max(1, _AT_ONCE // keys)
    return max(count for count in range(1, min(rows, most) + 1) if rows % count == 0)
