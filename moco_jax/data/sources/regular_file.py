"""Reads files whose path the data name: regular files below a size limit, and nothing else.

A path may be the URL of an object in a bucket.

A path among images may be a named pipe, a link to /dev/zero or a sparse file of a terabyte. Reading
one would block for ever or fill the memory.
"""

import errno
import os
import stat

from moco_jax.buckets import objects
from moco_jax.terminal.paths import is_url

MAX_BYTES = 1 << 30
_CHUNK_BYTES = 4 << 20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_file(path: str | os.PathLike, limit: int = MAX_BYTES) -> bytes:
    """Returns the contents of a regular file of at most `limit` bytes.

    Raises:
      OSError: if the path is absent, unreadable, not a regular file, or larger than the limit, or
        if the memory does not suffice.
      objects.BucketError: if the bucket of a URL can't be read.
    """
    path = os.fspath(path)
    if is_url(path):
        return _read_object(path, limit)
    size = _checked_size(path, os.stat(path), limit)
    # The path may be another file by now. Without O_NONBLOCK, opening a named pipe would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        size = _checked_size(path, os.fstat(descriptor), limit)
        return _read(descriptor, path, size, limit)
    except MemoryError as error:
        raise OSError(f"can't read {path}: not enough memory for {size} bytes") from error
    finally:
        os.close(descriptor)


def kind(mode: int) -> str:
    """Returns what a file of this st_mode is, such as 'a named pipe'; '' for a regular file."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "a special file")


def from_disk(error: BaseException) -> bool:
    """Returns whether an error is one of the disk, the bucket or permissions, not of the contents.

    Damaged contents cause errors without a number, or a seek to an offset that no file has.
    """
    contents = (None, errno.EINVAL, errno.EOVERFLOW)
    on_disk = isinstance(error, OSError) and error.errno not in contents
    return on_disk or isinstance(error, objects.BucketError)


def _read_object(url: str, limit: int) -> bytes:
    size, data = objects.read_whole(url, limit)
    if size > limit:
        raise _too_large(url, f"it has {size} bytes", limit)
    return data


def _checked_size(path: str, status: os.stat_result, limit: int) -> int:
    """Returns the size of a regular file in bytes, or raises an OSError."""
    if what := kind(status.st_mode):
        raise OSError(f"can't read {path}: it is {what}; allowed: a regular file")
    if status.st_size > limit:
        raise _too_large(path, f"it has {status.st_size} bytes", limit)
    return status.st_size


def _read(descriptor: int, path: str, size: int, limit: int) -> bytes:
    """Returns all bytes of an open file that had `size` bytes."""
    chunks, total = [], 0
    # The file may grow meanwhile, and files in /proc have size 0.
    while chunk := os.read(descriptor, size + 1 if not chunks else _CHUNK_BYTES):
        chunks.append(chunk)
        total += len(chunk)
        if total > limit:
            raise _too_large(path, "it grows", limit)
    return b"".join(chunks)


def _too_large(path: str, found: str, limit: int) -> OSError:
    return OSError(f"can't read {path}: {found}; allowed: at most {limit}")
