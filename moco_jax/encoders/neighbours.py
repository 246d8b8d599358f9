"""Nearest neighbours by cosine: exact, on all devices, in bounded memory.

The bank is split over the devices. Each device compares the queries with one block of its shard at
a time, so the matrix of queries x bank never exists. A bank that is larger than the memory of the
devices is sent to them in parts.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from moco_jax.parallel.mesh import AXES, Layout
from moco_jax.parallel.pipeline import pipelined
from moco_jax.terminal import progress

AMONG = ("all", "others", "later")

_QUERY_BATCH = 256
_BLOCK_ROWS = 65_536  # of the bank; with a batch of queries 64 MB of cosines on each device
_PART_BYTES = 2 << 30  # of the bank on each device; the copy of the next part may overlap
_FIRST_K = 16  # neighbours in the first search for duplicates; rows with more are searched again


def nearest(
    queries: np.ndarray,
    bank: np.ndarray,
    *,
    k: int,
    layout: Layout,
    own: np.ndarray | None = None,
    among: str = "all",
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k nearest rows of the bank: cosines f32[M, k], descending, and indices i32[M, k].

    Of rows with equal cosines the one with the lower index comes first. If a query has fewer than k
    neighbours, the cosines of the rest are -inf. Products are float32. Every process holds all
    features and gets the result.

    Args:
      queries: f32[M, F], not normalised.
      bank: f32[N, F], not normalised.
      own: i32[M], the index of each query's own row in the bank; for 'others' and 'later' only.
      among: the rows that are searched: 'all'; 'others', all but the query's own row; 'later',
        the rows after the query's own row.

    Raises:
      ValueError: for shapes that do not match, k below 1, an unknown `among`, or one that does not
        match `own`.
    """
    _check(queries, bank, k, own, among)
    own = np.zeros(len(queries), np.int32) if own is None else own.astype(np.int32)
    cosines = np.full((len(queries), k), -np.inf, np.float32)
    indices = np.zeros((len(queries), k), np.int32)

    def dispatched(start: int, part: jax.Array) -> Iterator[tuple[slice, Any]]:
        for first in range(0, len(queries), _QUERY_BATCH):
            rows = slice(first, min(first + _QUERY_BATCH, len(queries)))
            block = (_unit(queries[rows]), own[rows], cosines[rows], indices[rows])
            block = layout.put([_pad(x, _QUERY_BATCH) for x in block], layout.replicated)
            yield rows, _search(*block, part, start, len(bank), among=among, layout=layout)

    text = f"searching {len(bank):,} features"
    with progress.bar(len(queries), text, unit="queries", first="compiling") as bar:
        for start, part in _parts(bank, layout):
            fraction = layout.devices * part.shape[0] * part.shape[2] / len(bank)
            for rows, found in map(jax.device_get, pipelined(dispatched(start, part))):
                count = rows.stop - rows.start
                cosines[rows], indices[rows] = (x[:count] for x in found)
                bar.update(min(1.0, fraction) * count)
    return cosines, indices


def near_duplicates(
    features: np.ndarray, threshold: float, layout: Layout
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields all pairs whose cosine is at least a threshold: first i64[P], second i64[P], f32[P].

    Each pair of rows of f32[N, F] comes once, with first < second. Rows with few duplicates come
    before rows with many.
    """
    pending, k = np.arange(len(features)), _FIRST_K
    while len(pending):
        k = min(k, len(features))
        cosines, indices = nearest(
            features[pending], features, k=k, layout=layout, own=pending, among="later"
        )
        close = cosines >= threshold
        incomplete = close[:, -1] & (k < len(features))  # there may be more than k
        row, rank = np.nonzero(close & ~incomplete[:, None])
        yield pending[row], indices[row, rank].astype(np.int64), cosines[row, rank]
        pending, k = pending[incomplete], 8 * k


def _parts(bank: np.ndarray, layout: Layout) -> Iterator[tuple[int, jax.Array]]:
    """Yields the parts of the bank: (index of the first row, f32[blocks, shards, rows, F]).

    The rows of a shard are consecutive. So the order of shards is the order of indices, and ties
    can be broken on each shard first.
    """
    shards, width = layout.devices, bank.shape[1]
    shard_rows = -(-len(bank) // shards)
    all_blocks = -(-shard_rows // _BLOCK_ROWS)
    block_rows = -(-shard_rows // all_blocks)  # blocks of equal length need little padding
    parts = -(-all_blocks // max(1, _PART_BYTES // (block_rows * width * 4)))
    blocks = -(-all_blocks // parts)
    shard_rows = blocks * block_rows
    for start in range(0, len(bank), shards * shard_rows):

        def on_device(index: Any, start: int = start) -> np.ndarray:
            first = start + index[1].indices(shards)[0] * shard_rows
            rows = _pad(_unit(bank[first : first + shard_rows]), shard_rows)
            return rows.reshape(blocks, 1, block_rows, width)

        shape = (blocks, shards, block_rows, width)
        yield start, jax.make_array_from_callback(shape, layout.sharded(axis=1), on_device)


@functools.partial(jax.jit, static_argnames=("among", "layout"))
def _search(queries, own, cosines, indices, part, start, length, *, among: str, layout: Layout):
    """Returns the k nearest so far, f32[Q, k] and i32[Q, k], with the rows of one more part.

    Args:
      cosines, indices: [Q, k], of the nearest rows of earlier parts, which have lower indices.
      part: f32[blocks, shards, rows, F].
      start: index of the part's first row.
      length: rows of the whole bank; later rows are padding.
    """
    # shard_map, since XLA gathers all cosines on every device for a sharded top_k.
    search = jax.shard_map(
        functools.partial(_search_shard, k=cosines.shape[1], among=among),
        mesh=layout.mesh,
        in_specs=(P(), P(), P(None, AXES), P(), P()),
        out_specs=(P(None, AXES), P(None, AXES)),
    )
    found = (layout.replicate(x) for x in search(queries, own, part, start, length))
    # Earlier parts first, then the shards: candidates are in the order of their indices.
    both = zip((cosines, indices), found, strict=True)
    return _best(*(jnp.concatenate(pair, axis=1) for pair in both), k=cosines.shape[1])


def _search_shard(queries, own, part, start, length, *, k: int, among: str):
    """Returns the nearest rows, f32[Q, j] and i32[Q, j], of one device's shard of a part."""
    blocks, _, rows, _ = part.shape
    first = start + jax.lax.axis_index(AXES) * (blocks * rows)

    def search_block(block_and_number):
        block, number = block_and_number
        index = (first + number * rows + jnp.arange(rows))[None, :]
        allowed = index < length
        if among == "others":
            allowed = allowed & (index != own[:, None])
        elif among == "later":
            allowed = allowed & (index > own[:, None])
        found = jnp.einsum("qf,nf->qn", queries, block[0], precision="highest")
        values, row = jax.lax.top_k(jnp.where(allowed, found, -jnp.inf), min(k, rows))
        return values, first + number * rows + row

    found = jax.lax.map(search_block, (part, jnp.arange(blocks)))
    in_order = (jnp.swapaxes(x, 0, 1).reshape(len(queries), -1) for x in found)
    return _best(*in_order, k=min(k, blocks * rows))


def _best(cosines, indices, *, k: int):
    """Returns the k nearest of candidates [Q, j]; of equal cosines the first candidate."""
    cosines, order = jax.lax.top_k(cosines, k)
    return cosines, jnp.take_along_axis(indices, order, axis=1)


def _check(queries, bank, k: int, own, among: str) -> None:
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"queries {queries.shape} and bank {bank.shape} must be [M, F] and [N, F] with equal F"
        )
    if not len(queries) or not len(bank):
        raise ValueError(
            f"queries and bank must have at least one row; got {len(queries)} and {len(bank)}"
        )
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    if among not in AMONG:
        raise ValueError(f"among={among!r} is unknown; allowed: {', '.join(AMONG)}")
    if (own is None) != (among == "all"):
        raise ValueError(f"among={among!r} needs own={'None' if among == 'all' else 'i32[M]'}")


def _unit(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return (features / np.maximum(norms, 1e-12)).astype(np.float32)


def _pad(x: np.ndarray, length: int) -> np.ndarray:
    """Returns x [n, ...] padded with zeros to a length."""
    more = length - len(x)
    return np.concatenate([x, np.zeros((more, *x.shape[1:]), x.dtype)]) if more else x
