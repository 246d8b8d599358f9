"""The requests to a store that only fsspec knows, such as hf:// and hdfs://.

fsspec has no conditional requests. A write on a condition is refused, and an object that is
replaced while a run reads it is noticed at the next start only.
"""

import contextlib
import datetime
import importlib.util
import pathlib
import posixpath
import re
from collections.abc import Callable
from typing import Any

from moco_jax.buckets.client import Client, Entry, Kind, Over, Problem

# What stores call the version of an object, or the time of its last change.
_VERSIONS = (
    *("ETag", "etag", "e_tag", "blob_id", "oid", "sha256", "md5", "content_hash", "generation"),
    *("mtime", "LastModified", "last_modified", "modified", "updated", "created"),
)
_ON_DISK = ("file", "local")
_STATUSES = {401: Kind.DENIED, 403: Kind.DENIED, 404: Kind.NO_OBJECT, 429: Kind.PASSING}
_PASSING = re.compile("Timeout|Connect|ServerError|ServiceUnavailable|IncompleteRead")
_NO_CREDENTIALS = re.compile("Credential|TokenNotFound")
_DENIED = re.compile("Forbidden|AccessDenied|Permission|Unauthorized|Authentication|GatedRepo")
_ABSENT = re.compile("NotFound")


def connect(root: str) -> Client:
    """Returns the client of a store such as 'hf://datasets'; may connect to it.

    Raises:
      ValueError: if the scheme is unknown, or a package for it is not installed.
    """
    scheme = root.partition("://")[0]
    if scheme in _ON_DISK:
        raise ValueError(f"{scheme}:// names a path on this disk: give the path alone, as /data/x")
    if importlib.util.find_spec("fsspec") is None:
        raise ValueError(f"{root} needs fsspec: pip install fsspec")
    store = _file_system(root, scheme)
    inner = lambda key: store._strip_protocol(f"{root}/{key}".rstrip("/"))  # noqa: E731

    def entry(key: str, info: dict[str, Any]) -> Entry:
        version = next((info[name] for name in _VERSIONS if info.get(name)), "")
        if isinstance(version, datetime.datetime):  # lists of some stores have a number
            version = version.timestamp()
        return Entry(key, int(info["size"] or 0), str(version))

    def stat(key: str) -> Entry:
        store.invalidate_cache()
        info = store.info(inner(key))
        if info["type"] != "file":
            raise FileNotFoundError(key)
        return entry(key, info)

    def read(found: Entry, offset: int, size: int) -> bytes:
        return bytes(store.cat_file(inner(found.key), start=offset, end=offset + size))

    def whole(key: str, limit: int) -> tuple[int, bytes]:
        size = stat(key).size
        return size, bytes(store.cat_file(inner(key))) if size <= limit else b""

    def names(folder: str) -> list[Entry]:
        return below(folder, lambda path: store.find(path, detail=True).values())

    def names_in(folder: str) -> list[Entry]:
        return below(folder, lambda path: store.ls(path, detail=True))

    def below(folder: str, listed: Callable[[str], Any]) -> list[Entry]:
        store.invalidate_cache()
        start, top = inner(folder).rstrip("/") + "/", f"{folder}/" if folder else ""
        found = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for info in listed(inner(folder)):
                path = store._strip_protocol(info["name"])
                if info["type"] == "file" and path.startswith(start):
                    found.append(entry(top + path.removeprefix(start), info))
        return sorted(found)

    def write(key: str, data: bytes | pathlib.Path, over: Over | Entry) -> Entry:
        if over != Over.ANYTHING:
            raise Problem(Kind.UNCONDITIONAL, f"fsspec can't write {scheme}:// on a condition")
        with contextlib.suppress(Exception):  # a store without folders
            store.makedirs(inner(posixpath.dirname(key)), exist_ok=True)
        if isinstance(data, bytes):
            store.pipe_file(inner(key), data)
        else:
            store.put_file(str(data), inner(key))
        return stat(key)

    def remove(key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            store.rm_file(inner(key))

    return Client(*map(_sorted_errors, (stat, read, whole, names, names_in, write, remove)))


def _file_system(root: str, scheme: str) -> Any:
    """Returns the file system of fsspec."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(root)[0]
    except ImportError as error:
        name = getattr(error.__cause__ or error, "name", None)
        how = f": pip install {name.partition('.')[0]}" if name else ""
        raise ValueError(f"{root} needs a package that is not installed ({error}){how}") from error
    except ValueError as error:
        if "not known" not in str(error):
            raise ValueError(f"can't use {root}: {error}") from error
        raise ValueError(
            f"{root}: {scheme}:// is unknown; allowed: s3://, gs://, az://, abfs://, https://, "
            "http://, and those of fsspec, such as hf:// and hdfs://"
        ) from error
    except Exception as error:  # a store that needs a host or credentials raises many types
        raise ValueError(f"can't connect to {root}: {_words(error)}") from error


def _sorted_errors(request: Callable) -> Callable:
    """Returns a request whose errors are a `Problem`."""

    def asked(*arguments: Any) -> Any:
        try:
            return request(*arguments)
        except (Problem, MemoryError):
            raise
        except Exception as error:  # each store raises types of its own
            raise Problem(kind_of(error), _words(error)) from error

    return asked


def kind_of(error: Exception) -> Kind:
    """Returns what is wrong, by the type and the HTTP status of an error of a store."""
    name, response = type(error).__name__, getattr(error, "response", None)
    found = (getattr(error, "status", None), getattr(error, "status_code", None))
    found += (getattr(response, "status_code", None),)
    status = next((number for number in found if isinstance(number, int)), 0)
    if status in _STATUSES:
        return _STATUSES[status]
    if isinstance(error, FileNotFoundError):
        return Kind.NO_OBJECT
    if isinstance(error, PermissionError):
        return Kind.DENIED
    if isinstance(error, NotImplementedError):
        return Kind.UNCONDITIONAL
    if status >= 500 or isinstance(error, TimeoutError | ConnectionError) or _PASSING.search(name):
        return Kind.PASSING
    for pattern, kind in (
        (_NO_CREDENTIALS, Kind.NO_CREDENTIALS),
        (_DENIED, Kind.DENIED),
        (_ABSENT, Kind.NO_OBJECT),
    ):
        if pattern.search(name):
            return kind
    return Kind.OTHER


def _words(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
