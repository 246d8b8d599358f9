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
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from moco_jax.data.sources import folders
from moco_jax.data.sources.archives import tar_index
from moco_jax.data.sources.archives.memory import available_bytes
from moco_jax.data.sources.file_types import (
    LeftOut,
    counted,
    is_hidden,
    is_image,
    listed,
    no_images,
)
from moco_jax.data.sources.regular_file import MAX_BYTES, from_disk
from moco_jax.data.sources.source import Opened, Source
from moco_jax.terminal import progress

EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# A larger archive must be decompressed by the user: an uncompressed one needs no memory.
MAX_UNPACKED_BYTES = 8 << 30
_CHUNK_BYTES = 4 << 20
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
    warnings: list[str] = dataclasses.field(default_factory=list)

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
        (*_warnings(index), *index.left_out.notes(), *_repeated(index), *assigned.notes),
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
        unpacked = lambda: f"{contents.tell() >> 20:,} MB"  # noqa: E731
        what = f"decompressing {path}"
        with opener(path, "rb") as file, progress.phase(what, detail=unpacked):
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
        if from_disk(error):
            raise
        raise ValueError(f"the archive {path} is damaged or incomplete: {error}") from error
    return contents


def _index(file: BinaryIO, path: str) -> _Index:
    """Returns the members of an uncompressed tar.

    Raises:
      ValueError: if the archive is damaged.
    """
    index = _Index()
    found = lambda: f"{len(index.files):,} files"  # noqa: E731
    try:
        with progress.phase(f"listing {path}", detail=found):
            for member in tar_index.members(file, index.warnings.append):
                _add_member(member, index)
    except tar_index.DamagedTar as error:
        raise ValueError(f"the archive {path} is damaged or not a tar file: {error}") from error
    return index


def _add_member(member: tar_index.Member, index: _Index) -> None:
    """Adds a member to the index, unless it is hidden, a folder, or not readable."""
    path = _clean(member.name)
    parts = path.split("/")
    if ".." in parts or "\0" in path:
        index.left_out.add_odd("name outside of the archive", path)
    elif not path or member.kind == "folder" or any(map(is_hidden, parts)):
        return
    elif member.kind == "file":
        index.add(path, (member.offset, member.size))
    elif member.kind == "link":
        index.add(path, target=member.target)
    elif member.kind == "hard link":
        # A hard link leads to an earlier member: tar stores the bytes once.
        extent = index.files.get(_clean(member.target))
        if extent is None:
            index.left_out.add_odd("link to nothing", path)
        else:
            index.add(path, extent)
    else:
        index.left_out.add_odd(member.kind, path)


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


def _warnings(index: _Index) -> Iterator[str]:
    return (f"warning: {text}" for text in index.warnings)


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
