"""Opens tar archives of image files as sources, without unpacking them to disk.

An uncompressed archive is indexed once, and its members are read by offset. A compressed archive
can't be read by offset, so it is decompressed into memory, once for both splits.
"""

import bz2
import dataclasses
import gzip
import io
import lzma
import shlex
import zlib
from collections.abc import Callable
from typing import BinaryIO

from moco_jax.data.sources import folders
from moco_jax.data.sources.archives import tar_index
from moco_jax.data.sources.archives.members import (
    Extent,
    Members,
    check_size,
    clean,
    open_members,
    reader_by_offset,
)
from moco_jax.data.sources.archives.memory import available_bytes
from moco_jax.data.sources.regular_file import from_disk
from moco_jax.data.sources.source import Opened
from moco_jax.data.sources.storage.files import File, open_file, stream
from moco_jax.terminal import progress

EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# A larger archive must be decompressed by the user: an uncompressed one needs no memory.
MAX_UNPACKED_BYTES = 8 << 30
_CHUNK_BYTES = 4 << 20
# The first bytes of a file decide its compression; the file name does not.
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_COMMANDS = {gzip.open: "gunzip", bz2.open: "bunzip2", lzma.open: "unxz"}


def open_tar(path: str, keys: folders.Keys) -> Opened:
    """Returns the images of a tar archive; `folders.assign_splits` documents the folder structures.

    Raises:
      FileNotFoundError, PermissionError: if the archive can't be opened.
      ValueError: if the archive is damaged, holds no images, is compressed and unpacks to more
        than the memory allows, or its folder structure is not supported.
    """
    file = open_file(path)
    opener = _opener(file)
    if opener is None:
        with stream(file) as contents:
            index = _index(contents, path)
        read_at = reader_by_offset(file)
    else:
        contents = _decompress(file, opener)
        index = _index(contents, path)
        read_at = _reader_from_memory(contents)
    opened = open_members(index, path, keys, read_at, lambda: _if_archives(index, path))
    if opener is None and path.lower().endswith(".tar") and index.left_out.endings[".cls"]:
        pattern = shlex.quote(f"{path[: -len('.tar')]}*.tar")
        line = f"the .cls files are labels of a shard: --config.data.path={pattern} reads them"
        return dataclasses.replace(opened, notes=(*opened.notes, line))
    return opened


def _opener(file: File) -> Callable | None:
    """Returns the function that opens a compressed file, or None if it is not compressed."""
    start = file.read_at(0, 6)
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def _decompress(file: File, opener: Callable) -> io.BytesIO:
    """Returns the decompressed contents of a file, in memory."""
    path = file.path
    contents = io.BytesIO()
    most = min(MAX_UNPACKED_BYTES, available_bytes() // 2)
    try:
        unpacked = lambda: f"{contents.tell() >> 20:,} MB"  # noqa: E731
        what = f"decompressing {path}"
        with (
            stream(file) as packed,
            opener(packed, "rb") as unpacking,
            progress.phase(what, detail=unpacked),
        ):
            while chunk := unpacking.read(_CHUNK_BYTES):
                if contents.tell() + len(chunk) > most:
                    raise ValueError(
                        f"{path} unpacks to more than {most / 2**30:.3g} GiB, the "
                        "most that is held in memory (8 GiB, or half of the free memory); "
                        f"decompress it first ({_COMMANDS[opener]} {shlex.quote(path)}) and set "
                        "--config.data.path to the .tar"
                    )
                contents.write(chunk)
    except (EOFError, OSError, zlib.error, lzma.LZMAError, MemoryError) as error:
        if from_disk(error):
            raise
        raise ValueError(f"the archive {path} is damaged or incomplete: {error}") from error
    return contents


def _index(file: BinaryIO, path: str) -> Members[Extent]:
    """Returns the members of an uncompressed tar.

    Raises:
      ValueError: if the archive is damaged.
    """
    index = Members[Extent]()
    found = lambda: f"{len(index.files):,} files"  # noqa: E731
    try:
        with progress.phase(f"listing {path}", detail=found):
            for member in tar_index.members(file, index.warnings.append):
                _add_member(member, index)
    except tar_index.DamagedTar as error:
        raise ValueError(f"the archive {path} is damaged or not a tar file: {error}") from error
    return index


def _add_member(member: tar_index.Member, index: Members[Extent]) -> None:
    """Adds a member to the index, unless it is hidden, a folder, or not readable."""
    path = clean(member.name)
    if not index.admits(path, member.kind):
        return
    if member.kind == "file":
        index.add(path, (member.offset, member.size))
    elif member.kind == "link":
        index.add(path, target=member.target)
    elif member.kind == "hard link":
        # A hard link leads to an earlier member: tar stores the bytes once.
        extent = index.files.get(clean(member.target))
        if extent is None:
            index.left_out.add_odd("link to nothing", path)
        else:
            index.add(path, extent)
    else:
        index.left_out.add_odd(member.kind, path)


def _if_archives(index: Members[Extent], path: str) -> str:
    """Returns what to do about archives in an archive."""
    if not index.left_out.archives():
        return ""
    folder = shlex.quote(path.rpartition(".tar")[0] or f"{path}_unpacked")
    start = f"; {index.left_out.archives()} of them are archives: "
    if index.left_out.archives() > index.left_out.endings[".tar"]:
        return f"{start}unpack both levels into a folder, and set --config.data.path to it"
    return (
        f"{start}unpack the outer one, and set --config.data.path={folder}, as a folder of tars "
        f"is read:\n  mkdir {folder} && tar -xf {shlex.quote(path)} -C {folder}"
    )


def _reader_from_memory(file: io.BytesIO) -> Callable[[Extent], bytes]:
    """Returns a function that copies an extent from memory."""
    contents = file.getbuffer()

    def read_at(extent: Extent) -> bytes:
        check_size(extent[1])
        return bytes(contents[extent[0] : extent[0] + extent[1]])

    return read_at
