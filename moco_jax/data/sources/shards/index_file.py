"""The index of a shard on disk: its samples, so that they are listed once.

It lies beside the shard, or in the cache folder of the user if that folder can't be written. It
belongs to one file: to its size, its version (the time of change, or that of a bucket) and a digest
of its ends. Nothing in it is trusted; a damaged or outdated index is written again.

The index of a shard in a bucket is written into the cache folder, by one process of a machine. One
that was copied into the bucket with its shard is read; of this shard it knows another version.

The format: magic, uint32 length of a JSON header, the header, the arrays that it lists, and a
BLAKE2b digest of all before it.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import struct
from typing import Any

import numpy as np

from moco_jax.data.sources.regular_file import read_file
from moco_jax.data.sources.shards import once
from moco_jax.data.sources.shards.samples import KINDS, Labels, Samples, list_samples
from moco_jax.data.sources.storage.files import File, open_file
from moco_jax.terminal.paths import cache_folder, is_url

ENDING = ".moco-index"
_MAGIC = b"moco_jax index 1"
_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 16
_END_BYTES = 4096  # of the head and the tail of a shard
_MAX_BYTES = 1 << 32
_DTYPES = {"offsets": "<i8", "sizes": "<u4", "text": "|u1", "lengths": "<u4", "codes": "<i4"}


class _Invalid(ValueError):
    """Raised for an index that is damaged or belongs to another file."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard and its samples."""

    path: str
    size: int  # bytes of the file
    version: str | int  # of `storage.files.File`
    samples: Samples
    saved: bool  # whether the index is on disk
    remote: File | None  # the shard if it is in a bucket: it stays open


def open_shard(path: str) -> Shard:
    """Returns a shard with the samples of its index, which is written if there is none.

    Raises:
      ValueError: if the shard is damaged.
      OSError: if it can't be read.
    """
    file = open_file(path)
    bound = _identity(file)
    remote = is_url(path)
    samples, saved = _saved(path, bound, remote), True
    if samples is None and remote:
        with once.alone(_in_cache(path)):  # listing reads much of the shard
            samples = _saved(path, bound, remote)
            if samples is None:
                samples, saved = _listed(path, bound, [_in_cache(path)])
    elif samples is None:
        samples, saved = _listed(path, bound, [path + ENDING, _in_cache(path)])
    return Shard(path, file.size, file.version, samples, saved, file if remote else None)


def _listed(path: str, bound: dict[str, Any], places: list[str]) -> tuple[Samples, bool]:
    """Returns the samples of a shard, and whether their index could be written to a place."""
    samples = list_samples(path)
    data = encoded(samples, bound)
    return samples, any(_write(place, data) for place in places)


def _saved(path: str, bound: dict[str, Any], remote: bool) -> Samples | None:
    """Returns the samples of the index of a shard, None if there is none."""
    copied = {key: value for key, value in bound.items() if key != "changed"}
    beside, cached = (path + ENDING, copied if remote else bound), (_in_cache(path), bound)
    for place, expected in (cached, beside) if remote else (beside, cached):
        with contextlib.suppress(OSError, _Invalid):
            return decoded(read_file(place, _MAX_BYTES), expected)
    return None


def _identity(file: File) -> dict[str, Any]:
    """Returns the identity of a file: its name, size, version and a digest of its ends."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for offset in (0, max(0, file.size - _END_BYTES)):
        digest.update(file.read_at(offset, _END_BYTES))
    return {
        "name": os.fsencode(os.path.basename(file.path)).hex(),
        "size": file.size,
        "changed": file.version,
        "ends": digest.hexdigest(),
    }


def _in_cache(path: str) -> str:
    path = path if is_url(path) else os.path.realpath(path)
    name = hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()
    return os.path.join(cache_folder(), name + ENDING)


def _write(place: str, data: bytes) -> bool:
    """Writes an index as a whole, and returns whether it is there; keeps files of others."""
    temporary = f"{place}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        if os.path.exists(place) and not _is_index(place):
            return False
        os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, place)
        return True
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        return False


def _is_index(place: str) -> bool:
    with open(place, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def encoded(samples: Samples, bound: dict[str, Any]) -> bytes:
    """Returns the contents of an index; `bound` is the identity of the shard."""
    arrays = {name: getattr(samples, name) for name in ("offsets", "sizes", "text", "lengths")}
    for kind, labels in samples.labels.items():
        for name in ("codes", "text", "lengths"):
            arrays[f"{name} {kind}"] = getattr(labels, name)
    header = json.dumps(
        {
            "shard": bound,
            "arrays": {name: len(array) for name, array in arrays.items()},
            "left_out": samples.left_out,
            "endings": samples.endings,
            "warnings": samples.warnings,
        }
    ).encode()
    parts = [array.astype(_dtype(name)).tobytes() for name, array in arrays.items()]
    body = b"".join([_MAGIC, _LENGTH.pack(len(header)), header, *parts])
    return body + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()


def decoded(data: bytes, bound: dict[str, Any]) -> Samples:
    """Returns the samples of an index; its arrays are views of `data`.

    Args:
      data: the contents of the index.
      bound: what it must know of its shard, with the size.

    Raises:
      _Invalid: if the index is damaged, or belongs to another shard.
    """
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    start = len(_MAGIC) + _LENGTH.size
    if body[: len(_MAGIC)] != _MAGIC or len(body) < start:
        raise _Invalid("no index")
    if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest:
        raise _Invalid("damaged")
    try:
        (length,) = _LENGTH.unpack_from(body, len(_MAGIC))
        header = json.loads(body[start : start + length])
        if any(header["shard"].get(key) != value for key, value in bound.items()):
            raise _Invalid("it belongs to another file")
        arrays, at = {}, start + length
        for name, count in header["arrays"].items():
            arrays[name] = np.frombuffer(body, _dtype(name), count, at)
            at += arrays[name].nbytes
        if at != len(body):
            raise _Invalid("it has more bytes than arrays")
        samples = _samples(header, arrays)
        _check(samples, bound["size"])
        return samples
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise _Invalid(str(error)) from error


def _dtype(name: str) -> str:
    return _DTYPES[name.partition(" ")[0]]


def _samples(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Samples:
    labels = {
        kind: Labels(arrays[f"codes {kind}"], arrays[f"text {kind}"], arrays[f"lengths {kind}"])
        for kind in KINDS
        if f"codes {kind}" in arrays
    }
    left_out = header["left_out"].items()
    return Samples(
        arrays["offsets"],
        arrays["sizes"],
        arrays["text"],
        arrays["lengths"],
        labels,
        {str(what): (int(count), list(map(str, names))) for what, (count, names) in left_out},
        {str(ending): int(count) for ending, count in header["endings"].items()},
        list(map(str, header["warnings"])),
    )


def _check(samples: Samples, size: int) -> None:
    """Raises _Invalid unless the arrays fit together and into a shard of this size."""
    count = len(samples)
    ends = samples.offsets + samples.sizes
    fits = (
        len(samples.sizes) == len(samples.lengths) == count
        and int(samples.lengths.sum(dtype=np.int64)) == len(samples.text)
        and (not count or (samples.offsets.min() >= 0 and ends.max() <= size))
        and all(len(labels.codes) == count for labels in samples.labels.values())
    )
    for labels in samples.labels.values():
        known = len(labels.lengths)
        inside = not count or (labels.codes.min() >= -1 and labels.codes.max() < known)
        fits &= bool(inside) and int(labels.lengths.sum(dtype=np.int64)) == len(labels.text)
    if not fits:
        raise _Invalid("its arrays do not fit together")
