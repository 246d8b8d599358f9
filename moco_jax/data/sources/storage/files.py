"""Files on a disk or in a bucket that are read by offset."""

import dataclasses
import io
import os
import weakref
from collections.abc import Callable
from typing import Any, BinaryIO

from moco_jax.buckets import objects
from moco_jax.data.sources.regular_file import kind
from moco_jax.data.sources.storage import image_cache
from moco_jax.terminal.paths import is_url

# Of a stream from a bucket: a request takes 20 ms or more, in which as many bytes could come.
_BUFFER = 1 << 20


@dataclasses.dataclass(frozen=True)
class File:
    """An open file; it is closed with the last reference to its functions."""

    path: str  # or URL
    size: int  # bytes
    version: str | int  # changes when the file is replaced
    read_at: Callable[[int, int], bytes]  # offset, size; fewer bytes at the end; threads at once
    # As `read_at`, of the bytes of an image: those in a bucket may be kept on the disk.
    image_at: Callable[[int, int], bytes]


def open_file(path: str) -> File:
    """Returns an open file.

    Raises:
      OSError: if the file is absent, unreadable or not a regular file.
      objects.BucketError: if its bucket can't be read.
    """
    if is_url(path):
        entry = objects.stat(path)
        read = lambda offset, size: objects.read(path, entry, offset, size)  # noqa: E731
        image = image_cache.reader()
        read_image = lambda offset, size: image(path, entry, offset, size)  # noqa: E731
        return File(path, entry.size, entry.version, read, read_image)
    # Without O_NONBLOCK, opening a named pipe would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)

    def read_at(offset: int, size: int) -> bytes:
        try:
            return os.pread(descriptor, size, offset)
        except MemoryError as error:
            raise OSError(f"not enough memory for {size} bytes") from error

    weakref.finalize(read_at, os.close, descriptor)
    status = os.fstat(descriptor)
    if what := kind(status.st_mode):
        raise OSError(f"can't read {path}: it is {what}; allowed: a regular file")
    return File(path, status.st_size, status.st_mtime_ns, read_at, read_at)


def stream(file: File, buffering: int = -1) -> BinaryIO:
    """Returns a stream of the bytes of a file; `buffering` is that of a file on a disk."""
    if not is_url(file.path):
        return open(file.path, "rb", buffering)  # pyright: ignore[reportReturnType]
    return io.BufferedReader(_Stream(file), _BUFFER)


class _Stream(io.RawIOBase):
    """The bytes of a file in a bucket as Python's streams need them."""

    def __init__(self, file: File):
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative seek position {start + offset}")  # as Python's files do
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        data = self._file.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
