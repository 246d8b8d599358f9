"""The members of an archive: what tars and zips have in common."""

import dataclasses
import os
import posixpath
from collections.abc import Callable
from typing import Generic, TypeVar

from moco_jax.data.sources import folders
from moco_jax.data.sources.file_types import (
    LeftOut,
    counted,
    is_hidden,
    is_image,
    listed,
    no_images,
)
from moco_jax.data.sources.regular_file import MAX_BYTES
from moco_jax.data.sources.source import Opened, Source
from moco_jax.data.sources.storage.files import File

_MAX_TEXT_BYTES = 64 << 20
_MOST_LINKS = 40  # that are followed from one path, as by Linux
Extent = tuple[int, int]  # offset and size of bytes in a file
Place = TypeVar("Place")  # where a member is in its archive, such as an extent


@dataclasses.dataclass
class Members(Generic[Place]):
    """The members of an archive."""

    files: dict[str, Place] = dataclasses.field(default_factory=dict)
    links: dict[str, str] = dataclasses.field(default_factory=dict)  # symbolic; path: target
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)
    repeated: dict[str, None] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def add(self, path: str, place: Place | None = None, target: str = "") -> None:
        """Adds a file or a link; it replaces an earlier member of that name, as tar does."""
        if path in self.files or path in self.links:
            self.repeated[path] = None
            self.files.pop(path, None)
            self.links.pop(path, None)
        if place is None:
            self.links[path] = target
        else:
            self.files[path] = place

    def admits(self, path: str, kind: str = "file") -> bool:
        """Returns whether a member is data; counts one that is outside of the archive.

        Args:
          path: the name of the member, as `clean` returns it.
          kind: what it is; folders and hidden files are no data.
        """
        parts = path.split("/")
        if ".." in parts or "\0" in path:
            self.left_out.add_odd("name outside of the archive", path)
            return False
        return bool(path) and kind != "folder" and not any(map(is_hidden, parts))


def open_members(
    members: Members[Place],
    path: str,
    keys: folders.Keys,
    read_at: Callable[[Place], bytes],
    hint: Callable[[], str] = lambda: "",
) -> Opened:
    """Returns the images among the members; `folders.assign_splits` documents the structures.

    Args:
      path: the archive.
      read_at: returns the bytes of a member, and raises an OSError if they can't be read.
      hint: returns what to do about an archive without images.

    Raises:
      ValueError: if there are no images, or the folder structure is not supported.
    """
    found = _images(members)
    if not found:
        raise ValueError(no_images(f"the archive {path}", members.left_out) + hint())

    def read_text(member: str) -> str | None:
        if member not in members.files:
            return None
        try:
            data = read_at(members.files[member])
        except OSError:
            return None
        return None if len(data) > _MAX_TEXT_BYTES else data.decode(errors="replace")

    assigned = folders.assign_splits(found, path, keys, read_text)

    def open_split(split: folders.Split) -> Source:
        places = [found[member] for member in split.paths]
        return split.source(os.path.basename(path), split.paths, lambda i: read_at(places[i]))

    train, test = assigned.train, assigned.test
    warnings = (f"warning: {text}" for text in members.warnings)
    return Opened(
        open_split(train),
        test and open_split(test),
        (*warnings, *members.left_out.notes(), *_repeated(members), *assigned.notes),
        train_in=train.place,
        test_in=test.place if test else "",
        about_test=assigned.about_test,
    )


def _images(members: Members[Place]) -> dict[str, Place]:
    """Returns the images, symbolic links followed; counts all other members as left out."""
    images = {}
    for path, place in members.files.items():
        if is_image(path):
            images[path] = place
        else:
            members.left_out.add(path)
    above: set[str] = set()
    for folder in map(posixpath.dirname, members.files):
        while folder and folder not in above:
            above.add(folder)
            folder = posixpath.dirname(folder)
    for path in members.links:
        place, target = _followed(path, members)
        if place is not None:
            if is_image(path):
                images[path] = place
            else:
                members.left_out.add(path)
        elif target in above:
            members.left_out.add_odd("link to a folder", path)
        else:
            members.left_out.add_odd("link to nothing in the archive", path)
    return images


def _followed(path: str, members: Members[Place]) -> tuple[Place | None, str]:
    """Returns the place of the file that a symbolic link leads to, or None, and its path."""
    for _ in range(_MOST_LINKS):
        if path not in members.links:
            break
        target = members.links[path]
        # A target that begins with '/' is outside of the archive.
        path = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), target))[1:]
        if target.startswith("/") or "\0" in target:
            return None, target
    return members.files.get(path), path


def _repeated(members: Members) -> tuple[str, ...]:
    names = list(members.repeated)
    if not names:
        return ()
    what = counted(len(names), "file")
    return (
        f"the archive has {what} more than once ({listed(names)}): the last one is used, as by tar",
    )


def clean(name: str) -> str:
    """Returns the name of a member without empty and '.' parts."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def check_size(size: int) -> None:
    """Raises an OSError for a member that is larger than a file may be."""
    if size > MAX_BYTES:
        raise OSError(f"it has {size} bytes; allowed: at most {MAX_BYTES}")


def reader_by_offset(file: File) -> Callable[[Extent], bytes]:
    """Returns a function that reads an extent of the file; threads can call it at once."""

    def read_at(extent: Extent) -> bytes:
        offset, size = extent
        check_size(size)
        data = file.image_at(offset, size)
        if len(data) < size:
            raise OSError(f"the archive ends {size - len(data)} bytes too early")
        return data

    return read_at
