"""Finds metadata.csv and metadata.jsonl beside images, as the layout `imagefolder` has them.

A file of metadata counts if it has a column file_name, and labels or splits. Other files are left
out, and folders are classes as usual.
"""

import os
from collections.abc import Collection

from moco_jax.data.sources import split_names
from moco_jax.data.sources.folders import Keys
from moco_jax.data.sources.source import Opened
from moco_jax.data.sources.tables import columns, list_file
from moco_jax.data.sources.tables.lists import open_lists

_NAMES = ("metadata.csv", "metadata.jsonl")


def open_metadata(root: str, paths: Collection[str], keys: Keys) -> Opened | None:
    """Returns the images that the metadata of a folder list, None without labels in metadata.

    Args:
      root: the folder.
      paths: relative paths of all images in it.
      keys: of `data`.

    Raises:
      ValueError: as `lists.open_list`.
    """
    folders = sorted({"", *(path.partition("/")[0] for path in paths if "/" in path)})
    found = [
        (path, folder if split_names.role(folder) else "")
        for folder in folders
        for name in _NAMES
        if os.path.isfile(path := os.path.join(root, folder, name)) and _labelled(path, keys)
    ]
    return open_lists(found, root, root, keys) if found else None


def _labelled(path: str, keys: Keys) -> bool:
    """Returns whether a file of metadata has the names of images, and labels or splits."""
    try:
        names, has_header, _ = list_file.read(path)
    except ValueError:
        return False
    known = {*columns.LABELS, *columns.SPLITS, keys.label_column.lower()} - {""}
    return has_header and "file_name" in names and bool(known & {name.lower() for name in names})
