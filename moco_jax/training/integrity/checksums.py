"""Checksums of a state: computed on the devices before a save, on the host when it is read.

A checksum is a sum of integers, one for each 32-bit word of an array, so it does not depend on the
order of the sum, the sharding or the number of devices. The integer is a bijective hash of the word
and its position: one changed word always changes the checksum, several do but for a chance of
2^-32.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

_POSITION = 0x9E3779B1  # odd: every position gets another number
_CHUNK = 2**20  # words that the host hashes at once


class Summary(NamedTuple):
    """What is known of each array of a state, by its name, such as "params/backbone/kernel".

    Attributes:
      arrays: name -> [dtype, shape, checksum], as JSON returns it.
      not_finite: names of arrays with NaN or infinite values.
    """

    arrays: dict[str, list[Any]]
    not_finite: list[str]


def named(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by their names, such as "params/backbone/kernel"."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in flat}


def summarize(state: Any) -> Summary:
    """Returns the summary of a state of device arrays, the same on all processes."""
    leaves = named(state)
    shardings = (getattr(x, "sharding", None) for x in leaves.values())
    meshes = (sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding))
    found = jax.device_get(_checksums(next(meshes, None))(list(leaves.values())))
    pairs = zip(leaves.items(), found[0].tolist(), strict=True)
    arrays = {name: _described(x, checksum) for (name, x), checksum in pairs}
    return Summary(arrays, [name for name, ok in zip(leaves, found[1], strict=True) if not ok])


def summarize_host(tree: Any) -> Summary:
    """Returns the summary of a pytree of host arrays."""
    leaves = {name: np.asarray(x) for name, x in named(tree).items()}
    arrays = {name: _described(x, host_checksum(x)) for name, x in leaves.items()}
    floats = {name: x for name, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    return Summary(arrays, [name for name, x in floats.items() if not np.isfinite(x).all()])


def fingerprint(tree: Any) -> str:
    """Returns the identity of a pytree of host arrays: names, shapes and values."""
    content = json.dumps(summarize_host(tree).arrays, sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def unequal(saved: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Returns the names, in either summary's arrays, that are missing in one or differ."""
    names = sorted(saved.keys() | found.keys())
    return [name for name in names if saved.get(name) != found.get(name)]


def listed(names: Iterable[str], most: int = 3) -> str:
    """Returns the first few names and the number of the others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _described(x: Any, checksum: int) -> list[Any]:
    return [str(x.dtype), list(x.shape), checksum]


def host_checksum(x: np.ndarray) -> int:
    """Returns the checksum of a host array."""
    x = np.ascontiguousarray(x)
    if x.dtype.itemsize < 4:
        words = x.reshape(-1).view(np.dtype(f"u{x.dtype.itemsize}"))
    else:
        words = x.reshape(-1).view(np.uint32)
    total = 0
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK].astype(np.uint32)
        positions = np.arange(start, start + len(part), dtype=np.uint64).astype(np.uint32)
        total += int(_mix(part ^ (positions * np.uint32(_POSITION))).sum(dtype=np.uint64))
    return total % 2**32


@functools.cache
def _checksums(mesh: Any) -> Any:
    """Returns jitted: arrays on a mesh, or without one -> u32[2, arrays].

    They are the checksums, and 1 for each array whose values are all finite, else 0.
    """
    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())

    def checksum(x):
        words = _words(x)
        position = jnp.zeros(words.shape, jnp.uint32)
        stride = _POSITION
        for axis in reversed(range(words.ndim)):
            # Not a reshape, which would move a sharded array.
            along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            position += along * np.uint32(stride % 2**32)
            stride *= words.shape[axis]
        finite = jnp.isfinite(x) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.bool_(True)
        finite = finite.reshape(finite.shape + (1,) * (words.ndim - finite.ndim))
        finite = jnp.broadcast_to(finite, words.shape).astype(jnp.uint32)
        # One pass: XLA would read the array once for each of two reductions.
        return jax.lax.reduce(
            (_mix(words ^ position), finite),
            (np.uint32(0), np.uint32(1)),
            lambda a, b: (a[0] + b[0], a[1] & b[1]),
            range(words.ndim),
        )

    def all_checksums(arrays):
        pairs = [checksum(x) for x in arrays]
        return jnp.stack([jnp.stack(part) for part in zip(*pairs, strict=True)])

    return jax.jit(all_checksums, out_shardings=replicated)


def _words(x: jax.Array) -> jax.Array:
    """Returns the bits of an array as u32, in the order of its bytes on a little-endian host."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    size = x.dtype.itemsize
    if size < 4:
        return jax.lax.bitcast_convert_type(x, f"uint{8 * size}").astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _mix(x: Any) -> Any:
    """Returns MurmurHash3's bijective finalizer of u32 words, of numpy or JAX."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
