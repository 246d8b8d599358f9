"""The similarities of queries to a ring of keys, reduced to the few numbers that the loss needs.

The ring stays on its devices. The queries (B x D, small) are replicated, each device compares them
with its own keys, and maxima and sums are combined over the devices.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moco_jax.parallel.mesh import Layout

_MATRIX_MOST = 2**26  # similarities on a device, 256 MB; above this the ring is scanned
_KEYS_PER_PASS = 2**12  # keys of a device in one pass of the scan


class RingScores(NamedTuple):
    """What the loss needs of the similarities: f32[B] each.

    Attributes:
      log_sum: log of the sum of exp(similarity / T).
      hardest: the largest similarity; no gradient passes.
    """

    log_sum: jax.Array
    hardest: jax.Array


def score_ring(
    queries: jax.Array, ring: jax.Array, *, temperature: float, layout: Layout
) -> RingScores:
    """Returns the scores of each query, by a matrix of similarities or by a scan of the ring.

    Args:
      queries: f32[B, D], unit vectors, replicated.
      ring: [R, N, D], float32 or bfloat16, sharded over N; no gradient passes.
      temperature: T.
      layout: the devices and shardings.
    """
    ring = jax.lax.stop_gradient(ring)
    similarities = queries.shape[0] * ring.shape[0] * ring.shape[1] // layout.devices
    score = by_matrix if similarities <= _MATRIX_MOST else by_scan
    return score(queries, ring, temperature, layout)


def by_matrix(
    queries: jax.Array, ring: jax.Array, temperature: float, layout: Layout
) -> RingScores:
    """Returns the scores from the matrix of all similarities, B x K."""
    similarity = jnp.einsum("bd,rnd->brn", queries, ring, precision="highest")
    similarity = layout.shard(similarity, axis=2)
    return RingScores(
        log_sum=jax.nn.logsumexp(similarity / temperature, axis=(1, 2)),
        hardest=jax.lax.stop_gradient(similarity.max(axis=(1, 2))),
    )


def by_scan(queries: jax.Array, ring: jax.Array, temperature: float, layout: Layout) -> RingScores:
    """Returns the scores from one pass over the ring, a few keys at a time.

    Keys get no gradient. The gradient of a query is the mean of all keys, weighted by their
    softmax. The pass that computes the sums also accumulates that mean, so nothing of size K is
    stored or computed again: what remains is f32[B, D].
    """
    return _by_scan(queries, ring, temperature, layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_scan(queries: jax.Array, ring: jax.Array, temperature: float, layout: Layout) -> RingScores:
    return _forward(queries, ring, temperature, layout)[0]


def _forward(
    queries: jax.Array, ring: jax.Array, temperature: float, layout: Layout
) -> tuple[RingScores, jax.Array]:
    """Returns the scores and the mean key f32[B, D], from which the gradient follows."""
    rows, keys, dim = ring.shape
    shards, batch = layout.devices, queries.shape[0]
    together, stored = _rows_per_pass(rows, keys // shards), _as_stored(ring)

    def add_rows(number, sums):
        """Adds some rows of keys to the maximum, the sum and the weighted sum of each shard."""
        largest, total, weighted = sums
        # A slice in each pass: for the blocks of a lax.scan the whole ring is copied.
        block = _as_float32(jax.lax.dynamic_slice_in_dim(stored, number * together, together))
        block = layout.shard(block.reshape(together, shards, keys // shards, dim), axis=1)
        logits = jnp.einsum("bd,csnd->bscn", queries, block, precision="highest") / temperature
        new = jnp.maximum(largest, logits.max(axis=(2, 3)))
        weights, shrink = jnp.exp(logits - new[:, :, None, None]), jnp.exp(largest - new)
        total = total * shrink + weights.sum(axis=(2, 3))
        added = jnp.einsum("bscn,csnd->bsd", weights, block, precision="highest")
        return new, total, weighted * shrink[:, :, None] + added

    # Each shard has its own sums until the end: one reduction over devices, not one a pass.
    empty = (
        jnp.full((batch, shards), -jnp.inf, queries.dtype),
        jnp.zeros((batch, shards), queries.dtype),
        jnp.zeros((batch, shards, dim), queries.dtype),
    )
    sums = jax.lax.fori_loop(0, rows // together, add_rows, layout.shard(empty, axis=1))
    largest, total, weighted = sums

    hardest = largest.max(axis=1)
    scale = jnp.exp(largest - hardest[:, None])
    total = (total * scale).sum(axis=1)
    mean_key = (weighted * scale[:, :, None]).sum(axis=1) / total[:, None]
    return RingScores(hardest + jnp.log(total), hardest * temperature), mean_key


def _backward(temperature: float, layout: Layout, mean_key: jax.Array, gradient: RingScores):
    return gradient.log_sum[:, None] * mean_key / temperature, None  # no gradient for the ring


_by_scan.defvjp(_forward, _backward)


def _as_stored(ring: jax.Array) -> jax.Array:
    """Returns the ring, a bfloat16 ring as its bits.

    A CPU has no bfloat16 arithmetic: XLA would convert the whole ring to float32 before the loop.
    """
    if ring.dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(ring, jnp.uint16)
    return ring


def _as_float32(block: jax.Array) -> jax.Array:
    """Returns a block of `_as_stored` as float32; bfloat16 is the upper half of a float32."""
    if block.dtype == jnp.uint16:
        return jax.lax.bitcast_convert_type(block.astype(jnp.uint32) << 16, jnp.float32)
    return block


def _rows_per_pass(rows: int, keys: int) -> int:
    """Returns the most rows that divide the ring and hold at most `_KEYS_PER_PASS` keys a shard."""
    most = max(1, _KEYS_PER_PASS // keys)
    return max(count for count in range(1, min(rows, most) + 1) if rows % count == 0)
