"""Opens a folder of a bucket: shards, tables, or images as objects of their own.

A bucket has no folders: they are the parts of keys between slashes.
"""

from moco_jax.buckets import objects
from moco_jax.buckets.client import Entry
from moco_jax.data.sources.archives.members import Members, check_size, clean, open_members
from moco_jax.data.sources.file_types import LeftOut, is_hidden, is_image
from moco_jax.data.sources.folders import Keys
from moco_jax.data.sources.shards import patterns, shard_set
from moco_jax.data.sources.shards.index_file import ENDING as INDEX
from moco_jax.data.sources.source import Opened
from moco_jax.data.sources.storage import image_cache
from moco_jax.data.sources.tables import files
from moco_jax.terminal import progress


def open_folder(url: str, keys: Keys) -> Opened:
    """Returns the images below a folder; `folders.assign_splits` documents the structures.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if there are no images, or the structure is not supported.
      objects.BucketError: if the bucket can't be read.
    """
    url = url.rstrip("/")
    with progress.phase(f"listing {url}"):
        entries = objects.below(url)
    if not entries:
        raise FileNotFoundError(
            f"there is no object and no folder {url}: correct --config.data.path, or the path "
            "after the config file"
        )
    start = len(objects.split(url)[1])
    by_name = {entry.key[start:].lstrip("/"): entry for entry in entries}
    names = [name for name in by_name if not any(map(is_hidden, name.split("/")))]
    if not any(map(is_image, names)):
        shards = [name for name in names if name.lower().endswith(patterns.ENDING)]
        if shards:
            paths = sorted((f"{url}/{name}" for name in shards), key=patterns.natural)
            return shard_set.open_folder(url, paths, keys)
        if tables := list(filter(files.is_table, names)):
            left_out = LeftOut()
            for name in names:
                if not files.is_table(name):
                    left_out.add(name)
            return files.open_folder(url, tables, left_out, keys)
    return _of_images(url, {name: by_name[name] for name in names}, keys)


def _of_images(url: str, entries: dict[str, Entry], keys: Keys) -> Opened:
    """Returns the images of a folder whose objects are image files."""
    members = Members[Entry]()
    for name, entry in entries.items():
        if not name.endswith(INDEX):
            members.add(clean(name), entry)
    root, read = objects.split(url)[0], image_cache.reader()

    def read_at(entry: Entry) -> bytes:
        check_size(entry.size)
        return read(f"{root}/{entry.key}", entry, 0, entry.size)

    return open_members(members, url, keys, read_at)
