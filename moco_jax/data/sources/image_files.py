"""Folders of image files as sources. Files are listed here and opened only when they are read."""

import collections
import os
import pathlib

from moco_jax.data.sources import folders
from moco_jax.data.sources.source import Source, Sources


def open_folder(path: str, train_split: str = "train", test_split: str = "test") -> Sources:
    """Returns the images of a folder; `folders.arrange` tells which layouts are understood.

    Raises:
      FileNotFoundError, NotADirectoryError, PermissionError: the folder can't be listed.
      ValueError: it holds no images, or its layout makes no sense.
    """
    found, others = list_images(path)
    if not found:
        raise ValueError(no_images(f"the folder {path}", others))
    train, test = folders.arrange(found, path, train_split, test_split)
    return Sources(
        _folder_source(path, train),
        None if test is None else _folder_source(path, test),
    )


def list_images(root: str) -> tuple[list[str], collections.Counter]:
    """Returns the relative paths of all images below root, and its other files by extension.

    Links are followed, except to a folder that holds the link: that would never end.
    """
    found: list[str] = []
    others: collections.Counter = collections.Counter()
    pending = [("", frozenset())]
    while pending:
        folder, above = pending.pop()
        here = os.stat(os.path.join(root, folder))
        if (here.st_dev, here.st_ino) in above:
            continue
        above = above | {(here.st_dev, here.st_ino)}
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if folders.is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    pending.append((f"{folder}{entry.name}/", above))
                elif folders.is_image(entry.name):
                    found.append(folder + entry.name)
                else:
                    others[pathlib.PurePath(entry.name).suffix or "(no extension)"] += 1
    return found, others


def no_images(what: str, others: collections.Counter) -> str:
    """Returns the message for a place without images: what was looked for, and what was found."""
    kinds = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
    return (
        f"{what} holds no images; looked for {', '.join(folders.EXTENSIONS)} "
        f"(in any case, in subfolders too), found {kinds or 'no files'}"
    )


def _folder_source(root: str, split: folders.Split) -> Source:
    """Returns a source that opens a file at each read."""
    names = [os.path.join(root, path) for path in split.paths]

    def read(index: int) -> bytes:
        with open(names[index], "rb") as file:
            return file.read()

    name = folders.source_name(root, split)
    return Source(name, read, names, split.labels, split.class_names)
