"""Reads parts of files by offset."""

from moco_jax.data.sources.regular_file import MAX_BYTES
from moco_jax.data.sources.storage.files import File, open_file
from moco_jax.terminal.paths import is_url


def by_path(path: str) -> File:
    """Returns a file that is open while it is read only: a table may have thousands of files.

    Raises as `open_file`.
    """
    file = open_file(path)
    if is_url(path):
        return file
    read = lambda offset, size: open_file(path).read_at(offset, size)  # noqa: E731
    return File(path, file.size, file.version, read, read)


def read_at(file: File, offset: int, size: int) -> bytes:
    """Returns the bytes of an image; safe to call from several threads at once.

    The file is not mapped into memory: if it was cut off meanwhile, a read of a map would end the
    process.

    Raises:
      OSError: if the file can't be read, or is shorter.
    """
    path = file.path
    if size > MAX_BYTES:
        raise OSError(f"can't read {path}: an image of {size} bytes; allowed: at most {MAX_BYTES}")
    data = file.image_at(offset, size)
    if len(data) != size:
        raise OSError(f"can't read {path}: it ends before byte {offset + size}")
    return data


def no_image(path: str, row: int) -> OSError:
    """Returns the error for a row whose image is null."""
    return OSError(f"can't read {path}: row {row} has no bytes of an image")
