"""Nearest neighbours by cosine: exact, over all devices, in bounded memory.

The bank is compared a block at a time, each device with its own shard of it, so that no matrix of
queries x bank exists. A bank that is larger than the devices' memory goes there in parts.
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

AMONG = ("all", "others", "later")

_QUERIES = 256  # compared at once ...
_BLOCK = 65_536  # ... with so many rows of the bank on each device: 64 MB of similarities
_PART_BYTES = 2 << 30  # of the bank on each device; the next part may already be on its way
_FIRST_TRY = 16  # neighbours looked at for duplicates; rows that have more are looked at again


def nearest(
    queries: np.ndarray,
    bank: np.ndarray,
    *,
    k: int,
    layout: Layout,
    own: np.ndarray | None = None,
    among: str = "all",
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k nearest rows of the bank: cosines f32[M, k], falling, and indices i32[M, k].

    Of equal ones the lower index comes first. Where there are fewer than k the cosine is -inf. The
    products are float32. Every process holds all features and gets the result.

    Args:
      queries: f32[M, F], of any length; normalised here.
      bank: f32[N, F], likewise.
      k: neighbours.
      layout: where arrays lie.
      own: i32[M], each query's own index in the bank; for the two below.
      among: 'all' of the bank; 'others': all but the query's own row; 'later': rows after it.

    Raises:
      ValueError: for features that don't fit each other, and for an unknown `among`.
    """
    _check(queries, bank, k, own, among)
    own = np.zeros(len(queries), np.int32) if own is None else own.astype(np.int32)
    cosines = np.full((len(queries), k), -np.inf, np.float32)
    indices = np.zeros((len(queries), k), np.int32)

    def dispatched(start: int, part: jax.Array) -> Iterator[tuple[slice, Any]]:
        for first in range(0, len(queries), _QUERIES):
            rows = slice(first, min(first + _QUERIES, len(queries)))
            block = (_unit(queries[rows]), own[rows], cosines[rows], indices[rows])
            block = layout.put([_fill(x, _QUERIES) for x in block], layout.replicated)
            yield rows, _search(*block, part, start, len(bank), among=among, layout=layout)

    for start, part in _parts(bank, layout):
        for rows, found in map(jax.device_get, pipelined(dispatched(start, part))):
            cosines[rows], indices[rows] = (x[: rows.stop - rows.start] for x in found)
    return cosines, indices


def near_duplicates(
    features: np.ndarray, threshold: float, layout: Layout
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields all pairs whose cosine is at least a threshold: first i64[P], second i64[P], f32[P].

    Each pair comes once, first < second, those of few duplicates before those of many.

    Args:
      features: f32[N, F].
      threshold: of the cosine.
      layout: where arrays lie.
    """
    pending, k = np.arange(len(features)), _FIRST_TRY
    while len(pending):
        k = min(k, len(features))
        cosines, indices = nearest(
            features[pending], features, k=k, layout=layout, own=pending, among="later"
        )
        close = cosines >= threshold
        cut = close[:, -1] & (k < len(features))  # the next neighbour may be as close
        row, rank = np.nonzero(close & ~cut[:, None])
        yield pending[row], indices[row, rank].astype(np.int64), cosines[row, rank]
        pending, k = pending[cut], 8 * k


def _parts(bank: np.ndarray, layout: Layout) -> Iterator[tuple[int, jax.Array]]:
    """Yields (index of its first row, f32[blocks, shards, n, F]) of the parts of the bank.

    Each shard has rows that follow each other, so equal cosines can be put into order anywhere.
    """
    shards, width = layout.devices, bank.shape[1]
    shard_rows = -(-len(bank) // shards)
    all_blocks = -(-shard_rows // _BLOCK)
    n = -(-shard_rows // all_blocks)  # of one length, so that little of the last is empty
    parts = -(-all_blocks // max(1, _PART_BYTES // (n * width * 4)))
    blocks = -(-all_blocks // parts)
    shard_rows = blocks * n
    for start in range(0, len(bank), shards * shard_rows):

        def on_device(index: Any, start: int = start) -> np.ndarray:
            first = start + index[1].indices(shards)[0] * shard_rows
            rows = _fill(_unit(bank[first : first + shard_rows]), shard_rows)
            return rows.reshape(blocks, 1, n, width)

        shape = (blocks, shards, n, width)
        yield start, jax.make_array_from_callback(shape, layout.sharded(axis=1), on_device)


@functools.partial(jax.jit, static_argnames=("among", "layout"))
def _search(queries, own, cosines, indices, part, start, length, *, among: str, layout: Layout):
    """Returns the k nearest, f32[Q, k] and i32[Q, k], of those known and those of a part.

    Args:
      queries: f32[Q, F].
      own: i32[Q].
      cosines: f32[Q, k], of the nearest known so far, with lower indices than the part's.
      indices: i32[Q, k], likewise.
      part: f32[blocks, shards, n, F].
      start: index of the part's first row.
      length: rows of the whole bank; what follows is no row.
      among: see `nearest`.
      layout: where arrays lie.
    """
    # Left to the compiler, a sharded top_k gathers all the similarities on every device.
    search = jax.shard_map(
        functools.partial(_search_shard, k=cosines.shape[1], among=among),
        mesh=layout.mesh,
        in_specs=(P(), P(), P(None, AXES), P(), P()),
        out_specs=(P(None, AXES), P(None, AXES)),
    )
    found = (layout.replicate(x) for x in search(queries, own, part, start, length))
    # Parts and shards follow each other as their indices do.
    both = zip((cosines, indices), found, strict=True)
    return _best(*(jnp.concatenate(pair, axis=1) for pair in both), k=cosines.shape[1])


def _search_shard(queries, own, part, start, length, *, k: int, among: str):
    """Returns the nearest, f32[Q, j] and i32[Q, j], of one device's shard of a part."""
    blocks, _, n, _ = part.shape
    first = start + jax.lax.axis_index(AXES) * (blocks * n)

    def search_block(block_and_number):
        block, number = block_and_number
        index = (first + number * n + jnp.arange(n))[None, :]
        allowed = index < length
        if among == "others":
            allowed = allowed & (index != own[:, None])
        elif among == "later":
            allowed = allowed & (index > own[:, None])
        found = jnp.einsum("qf,nf->qn", queries, block[0], precision="highest")
        values, place = jax.lax.top_k(jnp.where(allowed, found, -jnp.inf), min(k, n))
        return values, first + number * n + place

    found = jax.lax.map(search_block, (part, jnp.arange(blocks)))
    in_order = (jnp.swapaxes(x, 0, 1).reshape(len(queries), -1) for x in found)
    return _best(*in_order, k=min(k, blocks * n))


def _best(cosines, indices, *, k: int):
    """Returns the k nearest of candidates [Q, j]; of equal ones the first."""
    cosines, order = jax.lax.top_k(cosines, k)
    return cosines, jnp.take_along_axis(indices, order, axis=1)


def _check(queries, bank, k: int, own, among: str) -> None:
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"queries {queries.shape} and bank {bank.shape} must be [M, F] and [N, F] of one F"
        )
    if not len(queries) or not len(bank):
        raise ValueError(f"{len(queries)} queries, a bank of {len(bank)}: at least one of each")
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    if among not in AMONG:
        raise ValueError(f"among={among!r} is unknown; known: {', '.join(AMONG)}")
    if (own is None) != (among == "all"):
        raise ValueError(f"among={among!r} goes {'without' if among == 'all' else 'with'} `own`")


def _unit(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return (features / np.maximum(norms, 1e-12)).astype(np.float32)


def _fill(x: np.ndarray, length: int) -> np.ndarray:
    """Returns x [n, ...] with zeros up to a length."""
    if len(x) == length:
        return x
    return np.concatenate([x, np.zeros((length - len(x), *x.shape[1:]), x.dtype)])
