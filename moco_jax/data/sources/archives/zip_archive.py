"""Opens zip archives of image files as sources, without unpacking them to disk.

The central directory is listed once by Python's zipfile. Members are read by offset; a deflated
member is inflated at each read. No size that the archive states is trusted.
"""

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from moco_jax.data.sources import folders
from moco_jax.data.sources.archives.members import (
    Members,
    check_size,
    clean,
    open_members,
)
from moco_jax.data.sources.file_types import counted, is_image, listed
from moco_jax.data.sources.regular_file import from_disk
from moco_jax.data.sources.source import Opened
from moco_jax.data.sources.storage.files import File, open_file, stream
from moco_jax.terminal import progress

EXTENSION = ".zip"
MAGIC = b"PK\x03\x04"
_ENCRYPTED, _UTF8 = 0x1, 0x800  # bits of a member's flags
_READ = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz"}
_UNIX, _WINDOWS = 3, (0, 10)  # systems that wrote a member
_MAX_TARGET_BYTES = 4096  # of a symbolic link
_MAX_OFFSET = 1 << 62
_MOST_SLACK = 1024  # bytes of name and extra fields that are read with a member
# Local header (APPNOTE 4.3.7): magic, 5 fields of 2 bytes, 3 of 4 bytes, sizes of name and extra.
_LOCAL = struct.Struct("<4s5H3I2H")


class _Place(NamedTuple):
    """Where a member is, and how it is stored."""

    header: int  # offset of its local header, in bytes
    stored: int  # bytes in the archive
    size: int  # bytes of the file
    method: int
    crc: int


def open_zip(path: str, keys: folders.Keys) -> Opened:
    """Returns the images of a zip archive; `folders.assign_splits` documents the folder structures.

    Raises:
      FileNotFoundError, PermissionError: if the archive can't be opened.
      ValueError: if the archive is damaged, holds no images, or images that are encrypted or
        compressed by another method than Deflate, or its folder structure is not supported.
    """
    file = open_file(path)
    with stream(file) as contents:
        infos = _directory(contents, path)
    read_at = lambda place: _read(file, place)  # noqa: E731
    members = Members[_Place]()
    for info in infos:
        _add(members, info, read_at)
    _check_readable(infos, path)
    return open_members(members, path, keys, read_at)


def _directory(file: BinaryIO, path: str) -> list[zipfile.ZipInfo]:
    """Returns what the central directory says of the members."""
    try:
        with progress.phase(f"listing {path}"), zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except Exception as error:  # zipfile raises many types on damaged files
        if from_disk(error):
            raise
        what = str(error) or type(error).__name__
        raise ValueError(f"the archive {path} is damaged or not a zip file: {what}") from error


def _add(
    members: Members[_Place], info: zipfile.ZipInfo, read_at: Callable[[_Place], bytes]
) -> None:
    """Adds a member, unless it is hidden, a folder, or not readable."""
    name = _name(info)
    path = clean(name)
    if not members.admits(path, "folder" if name.endswith("/") else "file"):
        return
    place = _Place(
        info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC
    )
    mode = info.external_attr >> 16 if info.create_system == _UNIX else 0
    if not stat.S_ISLNK(mode):
        members.add(path, place)
    elif place.size > _MAX_TARGET_BYTES or _unreadable(info):
        members.left_out.add_odd("damaged link", path)
    else:
        try:
            members.add(path, target=os.fsdecode(read_at(place)))
        except OSError:
            members.left_out.add_odd("damaged link", path)


def _name(info: zipfile.ZipInfo) -> str:
    """Returns the name of a member; zipfile takes bytes of unknown encoding for code page 437."""
    name = info.orig_filename
    if not info.flag_bits & _UTF8 and not name.isascii():
        try:
            name = name.encode("cp437").decode()
        except UnicodeError:
            pass
    by_windows = info.create_system in _WINDOWS and "/" not in name
    return name.replace("\\", "/") if by_windows else name


def _unreadable(info: zipfile.ZipInfo) -> str:
    """Returns why a member can't be read, or ''."""
    if info.flag_bits & _ENCRYPTED:
        return "encrypted"
    if info.compress_type not in _READ:
        method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
        return f"compressed by {method}"
    return ""


def _check_readable(infos: list[zipfile.ZipInfo], path: str) -> None:
    """Raises a ValueError if images are encrypted, or compressed by another method."""
    found = [(why, _name(info)) for info in infos if (why := _unreadable(info))]
    found = [(why, name) for why, name in found if is_image(name)]
    if found:
        why = found[0][0]
        names = [name for other, name in found if other == why]
        raise ValueError(
            f"{path} has {counted(len(names), 'image')} {why} ({listed(names[:1])}); allowed: "
            "stored or deflated, without a password. Unpack the archive, and set "
            "--config.data.path to the folder"
        )


def _read(file: File, place: _Place) -> bytes:
    """Returns the bytes of a member, by one read if its header is of usual length.

    Raises:
      OSError: if the member is damaged or too large.
    """
    check_size(max(place.size, place.stored))
    if not 0 <= place.header < _MAX_OFFSET:
        raise OSError(f"the archive has no byte {place.header}: it is damaged")
    found = file.image_at(place.header, _LOCAL.size + _MOST_SLACK + place.stored)
    if len(found) < _LOCAL.size:
        raise OSError(f"the archive ends {_LOCAL.size - len(found)} bytes too early")
    magic, *_, name, extra = _LOCAL.unpack_from(found)
    if magic != MAGIC:
        raise OSError(f"the archive has no member at byte {place.header}: it is damaged")
    start = _LOCAL.size + name + extra
    data = found[start : start + place.stored]
    if name + extra > _MOST_SLACK:
        data = file.image_at(place.header + start, place.stored)
    if len(data) < place.stored:
        raise OSError(f"the archive ends {place.stored - len(data)} bytes too early")
    if place.method == zipfile.ZIP_DEFLATED:
        data = _inflated(data, place.size)
    if len(data) != place.size or zlib.crc32(data) != place.crc:
        raise OSError("the archive is damaged: the checksum of the member is wrong")
    return data


def _inflated(data: bytes, size: int) -> bytes:
    """Returns deflated data inflated, at most one byte more than its size."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise OSError(f"the archive is damaged: {error}") from error
    except MemoryError as error:
        raise OSError(f"not enough memory for {size} bytes") from error
