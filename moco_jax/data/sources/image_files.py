"""Opens folders of image files as sources.

A folder is listed once. A file is opened only when its image is read.
"""

import errno
import os
from collections.abc import Callable

from moco_jax.data.sources import folders
from moco_jax.data.sources.file_types import LeftOut, is_hidden, is_image, no_images
from moco_jax.data.sources.regular_file import kind, read_file
from moco_jax.data.sources.source import Opened, Source
from moco_jax.data.sources.tables import files, metadata
from moco_jax.terminal import progress

_MAX_TEXT_BYTES = 64 << 20


def open_folder(path: str, keys: folders.Keys) -> Opened:
    """Returns the images of a folder; `folders.assign_splits` documents the folder structures.

    Raises:
      FileNotFoundError, NotADirectoryError, PermissionError: if the folder can't be listed.
      ValueError: if the folder holds no images, or its structure is not supported.
    """
    found, left_out = list_images(path)
    if not found and any(left_out.endings[ending] for ending in files.EXTENSIONS):
        return files.open_folder(path, *list_images(path, files.is_table), keys)
    if found and (listed := metadata.open_metadata(path, found, keys)):
        return listed
    if not found:
        hint = ""
        if archives := left_out.archives():
            hint = (
                f"; {archives} of them are archives: set --config.data.path to one of them, or "
                "unpack them"
            )
        raise ValueError(no_images(f"the folder {path}", left_out) + hint)

    def read_text(relative: str) -> str | None:
        try:
            return read_file(os.path.join(path, relative), _MAX_TEXT_BYTES).decode(errors="replace")
        except OSError:
            return None

    assigned = folders.assign_splits(found, path, keys, read_text)
    train, test = assigned.train, assigned.test
    return Opened(
        _folder_source(path, train),
        test and _folder_source(path, test),
        (*left_out.notes(), *assigned.notes),
        train_in=train.place,
        test_in=test.place if test else "",
        about_test=assigned.about_test,
    )


def list_images(root: str, wanted: Callable[[str], bool] = is_image) -> tuple[list[str], LeftOut]:
    """Returns the relative paths of all images below root, and what else is there.

    `wanted` returns whether a file of this name counts, instead of those that are images.

    Links are followed, except links to a folder above them, which would never end. Named pipes,
    devices, sockets and broken links are not images.
    """
    found: list[str] = []
    left_out = LeftOut()
    with progress.phase(f"listing {root}", detail=lambda: f"{len(found):,} images"):
        _list(root, wanted, found, left_out)
    return found, left_out


def _list(root: str, wanted: Callable[[str], bool], found: list[str], left_out: LeftOut) -> None:
    """Adds the relative paths of all wanted files below root, and what else is there."""
    pending = [("", frozenset())]
    while pending:
        folder, above = pending.pop()
        here = os.stat(os.path.join(root, folder))
        if (here.st_dev, here.st_ino) in above:
            continue
        above = above | {(here.st_dev, here.st_ino)}
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                path = folder + entry.name
                if _is_folder(entry):
                    pending.append((f"{path}/", above))
                elif odd := _odd(entry):
                    left_out.add_odd(odd, path)
                elif wanted(entry.name):
                    found.append(path)
                else:
                    left_out.add(path)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise


def _odd(entry: os.DirEntry) -> str:
    """Returns what an entry is, such as 'a named pipe'; '' for a file or a link to one."""
    if entry.is_file(follow_symlinks=False):  # needs no stat
        return ""
    try:
        return kind(entry.stat().st_mode).removeprefix("a ")
    except OSError:
        return "broken link"


def _folder_source(root: str, split: folders.Split) -> Source:
    names = [os.path.join(root, path) for path in split.paths]
    return split.source(root, names, lambda i: read_file(names[i]))
