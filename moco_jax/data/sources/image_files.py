"""Opens folders of image files as sources.

A folder is listed once. A file is opened only when its image is read.
"""

import collections
import os
import pathlib

from moco_jax.data.sources import folders
from moco_jax.data.sources.regular_file import read_file
from moco_jax.data.sources.source import Source, Sources


def open_folder(path: str, train_split: str = "train", test_split: str = "test") -> Sources:
    """Returns the images of a folder; `folders.assign_splits` documents the folder structures.

    Raises:
      FileNotFoundError, NotADirectoryError, PermissionError: if the folder can't be listed.
      ValueError: if the folder holds no images, or its structure is not supported.
    """
    found, others = list_images(path)
    if not found:
        raise ValueError(no_images(f"the folder {path}", others))
    train, test = folders.assign_splits(found, path, train_split, test_split)
    return Sources(_folder_source(path, train), test and _folder_source(path, test))


def list_images(root: str) -> tuple[list[str], collections.Counter]:
    """Returns the relative paths of all images below root, and counts of other files by extension.

    Links are followed, except links to a folder above them, which would never end.
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
    """Returns the error message for a folder or an archive without images."""
    kinds = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
    return (
        f"{what} holds no images; looked for {', '.join(folders.EXTENSIONS)} "
        f"(upper or lower case, also in subfolders), found {kinds or 'no files'}"
    )


def _folder_source(root: str, split: folders.Split) -> Source:
    names = [os.path.join(root, path) for path in split.paths]
    return split.source(root, names, lambda i: read_file(names[i]))
