"""Opens tar archives of image files as sources, without unpacking them to disk.

An uncompressed archive is indexed once, and its members are read by offset. A compressed archive
can't be read by offset, so it is decompressed into memory, once for both splits.
"""

import bz2
import collections
import gzip
import io
import lzma
import os
import pathlib
import tarfile
import weakref
import zlib
from collections.abc import Callable
from typing import BinaryIO

from moco_jax.data.sources import folders, image_files
from moco_jax.data.sources.source import Source, Sources

EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# A larger archive must be decompressed by the user: an uncompressed one needs no memory.
MAX_UNPACKED_BYTES = 8 << 30
_CHUNK_BYTES = 4 << 20
# The first bytes of a file decide its compression; the file name does not.
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_COMMANDS = {gzip.open: "gunzip", bz2.open: "bunzip2", lzma.open: "unxz"}
# Offset and size of a member, in bytes.
_Extent = tuple[int, int]


def open_tar(path: str, train_split: str = "train", test_split: str = "test") -> Sources:
    """Returns the images of a tar archive; `folders.assign_splits` documents the folder structures.

    Raises:
      FileNotFoundError, PermissionError: if the archive can't be opened.
      ValueError: if the archive is damaged, holds no images, is compressed and unpacks to more
        than MAX_UNPACKED_BYTES, or its folder structure is not supported.
    """
    opener = _opener(path)
    if opener is None:
        with open(path, "rb") as file:
            extents, others = _index(file, path)
            read_at = _reader_by_offset(file)
    else:
        contents = _decompress(path, opener)
        extents, others = _index(contents, path)
        read_at = _reader_from_memory(contents)
    if not extents:
        raise ValueError(image_files.no_images(f"the archive {path}", others))
    train, test = folders.assign_splits(extents, path, train_split, test_split)

    def open_split(split: folders.Split) -> Source:
        own_extents = [extents[member] for member in split.paths]
        return split.source(os.path.basename(path), split.paths, lambda i: read_at(own_extents[i]))

    return Sources(open_split(train), test and open_split(test))


def _opener(path: str) -> Callable | None:
    """Returns the function that opens a compressed file, or None if it is not compressed."""
    with open(path, "rb") as file:
        start = file.read(6)
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def _decompress(path: str, opener: Callable) -> io.BytesIO:
    """Returns the decompressed contents of a file, in memory."""
    contents = io.BytesIO()
    try:
        with opener(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                if contents.tell() + len(chunk) > MAX_UNPACKED_BYTES:
                    raise ValueError(
                        f"{path} unpacks to more than {MAX_UNPACKED_BYTES / 2**30:.3g} GiB, the "
                        "most that is held in memory; decompress it first "
                        f"({_COMMANDS[opener]} {path}) and set data.path to the .tar"
                    )
                contents.write(chunk)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        # A disk or permission error has an errno; errors of gzip and bz2 have none.
        if getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"the archive {path} is damaged or incomplete: {error}") from error
    return contents


def _index(file: BinaryIO, path: str) -> tuple[dict[str, _Extent], collections.Counter]:
    """Returns the extent of each image in an uncompressed tar, and counts of other files."""
    extents: dict[str, _Extent] = {}
    others: collections.Counter = collections.Counter()
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                _add_member(member, extents, others)
                # tarfile would keep a kilobyte for each of a million members.
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            end = archive.offset
    except tarfile.TarError as error:
        raise ValueError(f"the archive {path} is damaged or not a tar file: {error}") from error
    file.seek(end)
    # tarfile takes a damaged header for the end. The real end is a zero block or the end of file.
    if any(file.read(tarfile.BLOCKSIZE)):
        raise ValueError(
            f"the archive {path} is damaged: no tar header at byte {end}, "
            f"after {len(extents)} images"
        )
    return extents, others


def _add_member(
    member: tarfile.TarInfo, extents: dict[str, _Extent], others: collections.Counter
) -> None:
    """Adds a member to `extents` if it is an image, else to the counts in `others`."""
    path = _clean(member.name)
    if any(folders.is_hidden(part) for part in path.split("/")):
        return
    if not folders.is_image(path):
        if member.isfile():
            others[pathlib.PurePath(path).suffix or "(no extension)"] += 1
    elif member.isfile() and not member.issparse():
        extents[path] = (member.offset_data, member.size)
    elif member.islnk() and _clean(member.linkname) in extents:
        # A hard link to an earlier member: tar stores the bytes once.
        extents[path] = extents[_clean(member.linkname)]


def _clean(name: str) -> str:
    """Returns the name of a member without empty and '.' parts."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _reader_by_offset(file: BinaryIO) -> Callable[[_Extent], bytes]:
    """Returns a function that reads an extent of the file; threads can call it at once."""
    descriptor = os.dup(file.fileno())

    def read_at(extent: _Extent) -> bytes:
        offset, size = extent
        data = os.pread(descriptor, size, offset)
        if len(data) < size:
            raise OSError(f"the archive ends {size - len(data)} bytes too early")
        return data

    weakref.finalize(read_at, os.close, descriptor)
    return read_at


def _reader_from_memory(file: io.BytesIO) -> Callable[[_Extent], bytes]:
    """Returns a function that copies an extent from memory."""
    contents = file.getbuffer()
    return lambda extent: bytes(contents[extent[0] : extent[0] + extent[1]])
