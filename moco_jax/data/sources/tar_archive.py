"""Opens tar archives of image files as sources, without unpacking them to disk.

An uncompressed archive is indexed once, and its members are read by offset. A compressed archive
can't be read by offset, so it is decompressed into memory, once for both splits.
"""

import bz2
import dataclasses
import gzip
import io
import lzma
import os
import posixpath
import shlex
import tarfile
import weakref
import zlib
from collections.abc import Callable
from typing import BinaryIO

from moco_jax.data.sources import folders
from moco_jax.data.sources.file_types import (
    LeftOut,
    counted,
    is_hidden,
    is_image,
    listed,
    no_images,
)
from moco_jax.data.sources.memory import available_bytes
from moco_jax.data.sources.regular_file import MAX_BYTES
from moco_jax.data.sources.source import Opened, Source
from moco_jax.text import printable

EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# A larger archive must be decompressed by the user: an uncompressed one needs no memory.
MAX_UNPACKED_BYTES = 8 << 30
_CHUNK_BYTES = 4 << 20
# tarfile reads this much for the headers of one member; real ones have some kilobytes.
_MAX_HEADER_BYTES = 1 << 20
_MAX_TEXT_BYTES = 64 << 20
_MOST_LINKS = 40  # that are followed from one path, as by Linux
# The first bytes of a file decide its compression; the file name does not.
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_COMMANDS = {gzip.open: "gunzip", bz2.open: "bunzip2", lzma.open: "unxz"}
# Offset and size of a member, in bytes.
_Extent = tuple[int, int]


@dataclasses.dataclass
class _Index:
    """The members of an archive."""

    files: dict[str, _Extent] = dataclasses.field(default_factory=dict)
    links: dict[str, str] = dataclasses.field(default_factory=dict)  # symbolic; path: target
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)
    repeated: dict[str, None] = dataclasses.field(default_factory=dict)

    def add(self, path: str, extent: _Extent | None = None, target: str = "") -> None:
        """Adds a file or a link; it replaces an earlier member of that name, as tar does."""
        if path in self.files or path in self.links:
            self.repeated[path] = None
            self.files.pop(path, None)
            self.links.pop(path, None)
        if extent is None:
            self.links[path] = target
        else:
            self.files[path] = extent


class _Headers:
    """A file from which tarfile reads headers only, and only a bounded amount for one member.

    A damaged header may make tarfile read the rest of the archive, or read at its end for ever.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._left = file, _MAX_HEADER_BYTES
        self.tell, self.seek = file.tell, file.seek

    def begin_member(self) -> None:
        self._left = _MAX_HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        # Each read counts for at least a byte, so reading at the end comes to an end.
        self._left -= max(size, 1)
        if size < 0 or self._left < 0:
            raise tarfile.ReadError(f"a header has more than {_MAX_HEADER_BYTES} bytes")
        return self._file.read(size)


def open_tar(path: str, keys: folders.Keys) -> Opened:
    """Returns the images of a tar archive; `folders.assign_splits` documents the folder structures.

    Raises:
      FileNotFoundError, PermissionError: if the archive can't be opened.
      ValueError: if the archive is damaged, holds no images, is compressed and unpacks to more
        than the memory allows, or its folder structure is not supported.
    """
    opener = _opener(path)
    if opener is None:
        with open(path, "rb") as file:
            index = _index(file, path)
            read_at = _reader_by_offset(file)
    else:
        contents = _decompress(path, opener)
        index = _index(contents, path)
        read_at = _reader_from_memory(contents)
    images = _images(index)
    if not images:
        raise ValueError(
            no_images(f"the archive {path}", index.left_out) + _if_archives(index, path)
        )

    def read_text(member: str) -> str | None:
        offset, size = index.files.get(member, (0, _MAX_TEXT_BYTES + 1))
        return None if size > _MAX_TEXT_BYTES else read_at((offset, size)).decode(errors="replace")

    assigned = folders.assign_splits(images, path, keys, read_text)

    def open_split(split: folders.Split) -> Source:
        own_extents = [images[member] for member in split.paths]
        return split.source(os.path.basename(path), split.paths, lambda i: read_at(own_extents[i]))

    train, test = assigned.train, assigned.test
    return Opened(
        open_split(train),
        test and open_split(test),
        (*index.left_out.notes(), *_repeated(index), *assigned.notes),
        level=train.level,
        train_in=train.place,
        test_in=test.place if test else "",
        about_test=assigned.about_test,
    )


def _opener(path: str) -> Callable | None:
    """Returns the function that opens a compressed file, or None if it is not compressed."""
    with open(path, "rb") as file:
        start = file.read(6)
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def _decompress(path: str, opener: Callable) -> io.BytesIO:
    """Returns the decompressed contents of a file, in memory."""
    contents = io.BytesIO()
    most = min(MAX_UNPACKED_BYTES, available_bytes() // 2)
    try:
        with opener(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                if contents.tell() + len(chunk) > most:
                    raise ValueError(
                        f"{path} unpacks to more than {most / 2**30:.3g} GiB, the "
                        "most that is held in memory (8 GiB, or half of the free memory); "
                        f"decompress it first ({_COMMANDS[opener]} {shlex.quote(path)}) and set "
                        "--config.data.path to the .tar"
                    )
                contents.write(chunk)
    except (EOFError, OSError, zlib.error, lzma.LZMAError, MemoryError) as error:
        # A disk or permission error has an errno; errors of gzip and bz2 have none.
        if getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"the archive {path} is damaged or incomplete: {error}") from error
    return contents


def _index(file: BinaryIO, path: str) -> _Index:
    """Returns the members of an uncompressed tar.

    Raises:
      ValueError: if the archive is damaged.
    """
    index = _Index()
    end_of_file = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        end = _add_members(_Headers(file), end_of_file, index)
    except Exception as error:  # tarfile raises many types on damaged headers
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = str(error) or type(error).__name__
        raise ValueError(f"the archive {path} is damaged or not a tar file: {what}") from error
    file.seek(end)
    # tarfile takes a damaged header for the end. The real end is a zero block or the end of file.
    if any(file.read(tarfile.BLOCKSIZE)):
        raise ValueError(
            f"the archive {path} is damaged: no tar header at byte {end}, "
            f"after {counted(sum(map(is_image, index.files)), 'image')}"
        )
    return index


def _add_members(headers: _Headers, end_of_file: int, index: _Index) -> int:
    """Adds all members to the index; returns the offset of the end in bytes."""
    with tarfile.open(fileobj=headers, mode="r:") as archive:  # pyright: ignore[reportArgumentType, reportCallIssue]
        offset = -1
        while True:
            headers.begin_member()
            member = archive.next()
            if member is None:
                return archive.offset
            stored = 0 if member.issparse() or not member.isreg() else member.size
            if member.size < 0 or archive.offset <= offset:
                raise tarfile.ReadError(f"the size of {printable(member.name)} is {member.size}")
            if member.offset_data + stored > end_of_file:
                raise tarfile.ReadError(
                    f"{printable(member.name)} reaches beyond the end of the file"
                )
            offset = archive.offset
            _add_member(member, index)
            # tarfile would keep a kilobyte for each of a million members.
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]


def _add_member(member: tarfile.TarInfo, index: _Index) -> None:
    """Adds a member to the index, unless it is hidden, a folder, or not readable."""
    path = _clean(member.name)
    parts = path.split("/")
    if ".." in parts or "\0" in path:
        index.left_out.add_odd("name outside of the archive", path)
    elif not path or member.isdir() or any(map(is_hidden, parts)):
        return
    elif member.issparse():
        index.left_out.add_odd("sparse file", path)
    elif member.isreg():
        index.add(path, (member.offset_data, member.size))
    elif member.islnk():
        # A hard link to an earlier member: tar stores the bytes once.
        extent = index.files.get(_clean(member.linkname))
        if extent is None:
            index.left_out.add_odd("link to nothing", path)
        else:
            index.add(path, extent)
    elif member.issym():
        index.add(path, target=member.linkname)
    else:
        index.left_out.add_odd("named pipe" if member.isfifo() else "device", path)


def _images(index: _Index) -> dict[str, _Extent]:
    """Returns the images, symbolic links followed; counts all other members as left out."""
    images = {}
    for path, extent in index.files.items():
        if is_image(path):
            images[path] = extent
        else:
            index.left_out.add(path)
    above: set[str] = set()
    for folder in map(posixpath.dirname, index.files):
        while folder and folder not in above:
            above.add(folder)
            folder = posixpath.dirname(folder)
    for path in index.links:
        extent, target = _followed(path, index)
        if extent is not None:
            if is_image(path):
                images[path] = extent
            else:
                index.left_out.add(path)
        elif target in above:
            index.left_out.add_odd("link to a folder", path)
        else:
            index.left_out.add_odd("link to nothing in the archive", path)
    return images


def _followed(path: str, index: _Index) -> tuple[_Extent | None, str]:
    """Returns the extent of the file that a symbolic link leads to, or None, and its path."""
    for _ in range(_MOST_LINKS):
        if path not in index.links:
            break
        target = index.links[path]
        # A target that begins with '/' is outside of the archive.
        path = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), target))[1:]
        if target.startswith("/") or "\0" in target:
            return None, target
    return index.files.get(path), path


def _repeated(index: _Index) -> tuple[str, ...]:
    names = list(index.repeated)
    if not names:
        return ()
    what = counted(len(names), "file")
    return (
        f"the archive has {what} more than once ({listed(names)}): the last one is used, as by tar",
    )


def _if_archives(index: _Index, path: str) -> str:
    """Returns what to do about archives in an archive."""
    if not index.left_out.archives():
        return ""
    folder = shlex.quote(path.rpartition(".tar")[0] or f"{path}_unpacked")
    return (
        f"; {index.left_out.archives()} of them are archives: unpack both levels, and set "
        f"--config.data.path={folder}:\n"
        f"  mkdir {folder} && tar -xf {shlex.quote(path)} -C {folder} && cd {folder}\n"
        '  find . -name "*.tar" -exec sh -c \'mkdir "${1%.tar}" && tar -xf "$1" -C "${1%.tar}" '
        '&& rm "$1"\' - {} \\;'
    )


def _clean(name: str) -> str:
    """Returns the name of a member without empty and '.' parts."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _reader_by_offset(file: BinaryIO) -> Callable[[_Extent], bytes]:
    """Returns a function that reads an extent of the file; threads can call it at once."""
    descriptor = os.dup(file.fileno())

    def read_at(extent: _Extent) -> bytes:
        offset, size = extent
        _check_size(size)
        try:
            data = os.pread(descriptor, size, offset)
        except MemoryError as error:
            raise OSError(f"not enough memory for {size} bytes") from error
        if len(data) < size:
            raise OSError(f"the archive ends {size - len(data)} bytes too early")
        return data

    weakref.finalize(read_at, os.close, descriptor)
    return read_at


def _reader_from_memory(file: io.BytesIO) -> Callable[[_Extent], bytes]:
    """Returns a function that copies an extent from memory."""
    contents = file.getbuffer()

    def read_at(extent: _Extent) -> bytes:
        _check_size(extent[1])
        return bytes(contents[extent[0] : extent[0] + extent[1]])

    return read_at


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise OSError(f"it has {size} bytes; allowed: at most {MAX_BYTES}")
