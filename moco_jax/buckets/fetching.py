"""Objects copied to files on a disk, and the folder for them."""

import contextlib
import contextvars
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from concurrent import futures

from moco_jax.buckets import objects
from moco_jax.buckets.client import Entry
from moco_jax.terminal import paths

_CHUNK = 16 << 20  # bytes of a request
_FILES_AT_ONCE = 8
_UNFINISHED = ".fetched"


def cache(kind: str, url: str) -> pathlib.Path:
    """Returns the place in the user's cache folder for copies of a URL; makes nothing.

    Args:
      kind: of copies, such as 'runs'.
      url: what is copied; its last name begins the name of the place.
    """
    key = objects.split(url)
    digest = hashlib.blake2b("/".join(key).encode(), digest_size=8).hexdigest()
    name = (key[1] or key[0]).rstrip("/").rpartition("/")[2]
    return pathlib.Path(paths.cache_folder()).absolute() / kind / f"{name}-{digest}"


@contextlib.contextmanager
def explained(place: pathlib.Path) -> Iterator[None]:
    """Errors of the disk within the block say that the cache folder can't be written.

    Raises:
      OSError: for such an error; those of the bucket have no number and stay as they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            f"can't write a local copy in {place.parent}: {error.strerror or error}; free the "
            "disk, or set XDG_CACHE_HOME to a folder that can be written"
        ) from error


def relative(url: str, entries: Iterable[Entry]) -> dict[str, Entry]:
    """Returns objects below a URL by their path from there; markers of folders are left out.

    Such markers are empty objects, which consoles and mounted buckets make. obstore drops the '/'
    at their end.

    Raises:
      BucketError: for a key that is no path inside a folder, such as 'x/../y'.
    """
    start = objects.split(url)[1]
    found: dict[str, Entry] = {}
    for entry in entries:
        name = entry.key[len(start) :].lstrip("/")
        if not name or name.endswith("/"):
            continue
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            raise objects.BucketError(f"{url} has an object whose name is no path: {entry.key!r}")
        found[name] = entry
    folders = {name[: slash.start()] for name in found for slash in re.finditer("/", name)}
    return {name: x for name, x in found.items() if x.size or name not in folders}


def download(url: str, folder: pathlib.Path, entries: dict[str, Entry]) -> None:
    """Writes objects below a URL to files below a folder; files of the same names are replaced.

    Args:
      url: of the folder in the bucket.
      folder: on the disk.
      entries: by the path from the URL, see `relative`.

    Raises:
      OSError: if a file can't be written, or an object is changed meanwhile.
      BucketError: if the bucket can't be read.
    """
    with futures.ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        work = [
            pool.submit(
                contextvars.copy_context().run,
                copy_object,
                f"{url.rstrip('/')}/{name}",
                entry,
                folder / name,
            )
            for name, entry in entries.items()
        ]
        try:
            for done in futures.as_completed(work):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def is_unfinished(name: str) -> bool:
    """Returns whether a file of this name is what a killed process left of an object."""
    return name.startswith(".") and name.endswith(_UNFINISHED)


def copy_object(url: str, entry: Entry, path: pathlib.Path) -> None:
    """Writes an object to a file, which appears as a whole; raises as `download`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{_UNFINISHED}")
    try:
        with open(temporary, "wb") as file:
            for offset in range(0, entry.size, _CHUNK):
                file.write(objects.read(url, entry, offset, _CHUNK))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
