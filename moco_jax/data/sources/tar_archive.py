"""Tar archives of image files as sources, without unpacking them on disk.

An uncompressed archive is indexed once and its members read by offset. A compressed one can't be
read at an offset, so it is decompressed into memory, once for both splits.
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
# Beyond this a decompressed archive in memory is a surprise; reading the file itself needs none.
MAX_UNPACKED_BYTES = 8 << 30
_CHUNK_BYTES = 4 << 20
# What a file starts with tells its compression, whatever its name says.
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_COMMANDS = {gzip.open: "gunzip", bz2.open: "bunzip2", lzma.open: "unxz"}
# Offset and size of a member's bytes.
_Place = tuple[int, int]


def open_tar(path: str, train_split: str = "train", test_split: str = "test") -> Sources:
    """Returns the images of a tar archive; `folders.arrange` tells which layouts are understood.

    Raises:
      FileNotFoundError, PermissionError: the archive can't be opened.
      ValueError: it is damaged, holds no images, is compressed and over MAX_UNPACKED_BYTES, or
        its layout makes no sense.
    """
    opener = _opener(path)
    if opener is None:
        with open(path, "rb") as file:
            places, others = _index(file, path)
            read_at = _reader_by_offset(file)
    else:
        contents = _decompress(path, opener)
        places, others = _index(contents, path)
        read_at = _reader_from_memory(contents)
    if not places:
        raise ValueError(image_files.no_images(f"the archive {path}", others))
    train, test = folders.arrange(places, path, train_split, test_split)
    return Sources(
        _tar_source(path, train, places, read_at),
        None if test is None else _tar_source(path, test, places, read_at),
    )


def _opener(path: str) -> Callable | None:
    """Returns what decompresses the file, or None where it is not compressed."""
    with open(path, "rb") as file:
        start = file.read(6)
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def _decompress(path: str, opener: Callable) -> io.BytesIO:
    """Returns a compressed file's contents, in memory."""
    contents = io.BytesIO()
    try:
        with opener(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                if contents.tell() + len(chunk) > MAX_UNPACKED_BYTES:
                    raise ValueError(
                        f"{path} unpacks to more than {MAX_UNPACKED_BYTES / 2**30:.3g} GiB, which "
                        "would all have to be held in memory; decompress it first "
                        f"({_COMMANDS[opener]} {path}) and give the .tar"
                    )
                contents.write(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise ValueError(f"the archive {path} is damaged or incomplete: {error}") from error
    except OSError as error:
        if error.errno is not None:  # A fault of the disk or the permissions; bz2 sets no errno.
            raise
        raise ValueError(f"the archive {path} is damaged or incomplete: {error}") from error
    return contents


def _index(file: BinaryIO, path: str) -> tuple[dict[str, _Place], collections.Counter]:
    """Returns where each image of an uncompressed tar lies, and its other files by extension."""
    places: dict[str, _Place] = {}
    others: collections.Counter = collections.Counter()
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                _add_member(member, places, others)
                # It would keep a kilobyte for each of a million members.
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            end = archive.offset
    except tarfile.TarError as error:
        raise ValueError(f"the archive {path} is damaged or no tar: {error}") from error
    file.seek(end)
    # tarfile takes a damaged header for the end; the true end is a block of zeros, or the file's.
    if any(file.read(tarfile.BLOCKSIZE)):
        raise ValueError(
            f"the archive {path} is damaged: no tar header at byte {end}, "
            f"after {len(places)} images"
        )
    return places, others


def _add_member(
    member: tarfile.TarInfo, places: dict[str, _Place], others: collections.Counter
) -> None:
    """Notes a member if it is an image, or counts it if it is another file."""
    path = _clean(member.name)
    if any(folders.is_hidden(part) for part in path.split("/")):
        return
    if not folders.is_image(path):
        if member.isfile():
            others[pathlib.PurePath(path).suffix or "(no extension)"] += 1
    elif member.isfile() and not member.issparse():
        places[path] = (member.offset_data, member.size)
    elif member.islnk() and _clean(member.linkname) in places:
        # A second name of a file that came before: tar stores its bytes once.
        places[path] = places[_clean(member.linkname)]


def _clean(name: str) -> str:
    """Returns a member's name without './' and '/' at its start."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _reader_by_offset(file: BinaryIO) -> Callable[[_Place], bytes]:
    """Returns a function that reads at an offset, without the shared position of a seek."""
    descriptor = os.dup(file.fileno())

    def read_at(place: _Place) -> bytes:
        offset, size = place
        data = os.pread(descriptor, size, offset)
        if len(data) < size:
            raise OSError(f"the archive ends {size - len(data)} bytes too early")
        return data

    weakref.finalize(read_at, os.close, descriptor)
    return read_at


def _reader_from_memory(file: io.BytesIO) -> Callable[[_Place], bytes]:
    """Returns a function that copies a member's bytes out of memory."""
    contents = file.getbuffer()
    return lambda place: bytes(contents[place[0] : place[0] + place[1]])


def _tar_source(
    path: str,
    split: folders.Split,
    places: dict[str, _Place],
    read_at: Callable[[_Place], bytes],
) -> Source:
    """Returns a source that reads members; an image's name is its member's."""
    own_places = [places[member] for member in split.paths]

    def read(index: int) -> bytes:
        return read_at(own_places[index])

    name = folders.source_name(os.path.basename(path), split)
    return Source(name, read, split.paths, split.labels, split.class_names)
