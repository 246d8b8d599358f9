"""Reads parts of files by offset."""

import os

from moco_jax.data.sources.regular_file import MAX_BYTES


def read_at(path: str, offset: int, size: int) -> bytes:
    """Returns bytes of a file; safe to call from several threads at once.

    The file is not mapped into memory: if it was cut off meanwhile, a read of a map would end the
    process.

    Raises:
      OSError: if the file can't be read, or is shorter.
    """
    if size > MAX_BYTES:
        raise OSError(f"can't read {path}: an image of {size} bytes; allowed: at most {MAX_BYTES}")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        data = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(data) != size:
        raise OSError(f"can't read {path}: it ends before byte {offset + size}")
    return data


def no_image(path: str, row: int) -> OSError:
    """Returns the error for a row whose image is null."""
    return OSError(f"can't read {path}: row {row} has no bytes of an image")
