"""The requests to a bucket, by obstore, with its errors sorted into kinds."""

import contextlib
import dataclasses
import enum
import importlib.util
import os
import pathlib
import re
import urllib.parse
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal", "token request")
_NO_BUCKET = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")
_TOO_MANY = 429
_PLAIN = ("http://", "https://")  # servers of files, which are no buckets
_WEAK = "W/"  # an ETag that no condition matches
_MODIFIED = "modified "
_PART = 8 << 20  # bytes of a part of a larger object


class Kind(enum.Enum):
    """What is wrong with a request."""

    NO_OBJECT = "there is no such object"
    NO_BUCKET = "there is no such bucket"
    DENIED = "permission denied"
    NO_CREDENTIALS = "no credentials"
    CHANGED = "the object is another one by now"
    UNCONDITIONAL = "the server can't write on a condition"
    NO_LISTS = "the server can't list objects"
    PASSING = "the server is gone or has too much to do"
    OTHER = "other"


class Problem(Exception):
    """Raised by the requests of a `Client`; the message has the words of the server."""

    def __init__(self, kind: Kind, text: str):
        super().__init__(text)
        self.kind = kind


class Entry(NamedTuple):
    """An object of a bucket."""

    key: str
    size: int  # bytes
    version: str  # changes when the object is replaced; '' if the server has none
    generation: str = ""  # what Google's conditional writes need; '' in a list of objects


class Over(enum.Enum):
    """What a write replaces; the other choice is an `Entry`: this version of the object only."""

    ANYTHING = "anything"
    NOTHING = "nothing: there must be no such object"


@dataclasses.dataclass(frozen=True)
class Client:
    """The requests to one bucket; threads can make them at once. All raise a `Problem`."""

    stat: Callable[[str], Entry]  # of a key
    read: Callable[[Entry, int, int], bytes]  # offset, size >= 1
    whole: Callable[[str, int], tuple[int, bytes]]  # key, limit; size, b"" if it is larger
    names: Callable[[str], list[Entry]]  # below a folder, '' for all
    names_in: Callable[[str], list[Entry]]  # directly in a folder
    # Key, contents or the file with them, what is replaced; `Kind.CHANGED` if it is another object,
    # which may be our own write whose answer was lost. An entry must be of `stat` or `write`.
    write: Callable[[str, bytes | pathlib.Path, Over | Entry], Entry]
    remove: Callable[[str], None]  # of a key; nothing happens if there is no such object


def connect(root: str) -> Client:
    """Returns the client of a bucket such as 's3://bucket'; asks nothing yet.

    Raises:
      ValueError: if obstore is not installed, or the URL can't be used.
    """
    if importlib.util.find_spec("obstore") is None:
        raise ValueError(f"{root} needs obstore: pip install 'moco-jax[bucket]'")
    import obstore  # pyright: ignore[reportMissingImports]

    store, plain = _store(root), root.startswith(_PLAIN)
    # obstore escapes the keys of a plain server; its URLs are escaped already.
    of_url: Callable[[str], str] = urllib.parse.unquote if plain else str

    def stat(key: str) -> Entry:
        return _entry(obstore.head(store, of_url(key)))

    def read(entry: Entry, offset: int, size: int) -> bytes:
        options: Any = {"range": (offset, offset + size)}
        if entry.version.startswith(_MODIFIED):
            options["if_unmodified_since"] = _time(entry.version)
        elif entry.version:
            options["if_match"] = entry.version
        return obstore.get(store, entry.key, options=options).bytes().to_bytes()

    def whole(key: str, limit: int) -> tuple[int, bytes]:
        found = obstore.get(store, of_url(key))
        size = found.meta["size"]
        return size, found.bytes().to_bytes() if size <= limit else b""

    def names(folder: str) -> list[Entry]:
        if plain:
            raise Problem(Kind.NO_LISTS, "")
        return [_entry(found) for chunk in obstore.list(store, folder) for found in chunk]

    def names_in(folder: str) -> list[Entry]:
        if plain:
            raise Problem(Kind.NO_LISTS, "")
        found: Any = obstore.list_with_delimiter(store, folder)
        return [_entry(each) for each in found["objects"]]

    def write(key: str, data: bytes | pathlib.Path, over: Over | Entry) -> Entry:
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        several = over == Over.ANYTHING and size > _PART  # parts can't be written on a condition
        put = obstore.put(
            store, key, data, mode=_mode(over), use_multipart=several, chunk_size=_PART
        )
        return Entry(key, size, *_versions(put))

    def remove(key: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # S3 has no such error
            obstore.delete(store, key)

    return Client(*map(_sorted_errors, (stat, read, whole, names, names_in, write, remove)))


def _store(root: str) -> Any:
    from obstore import exceptions  # pyright: ignore[reportMissingImports]
    from obstore.store import HTTPStore, from_url  # pyright: ignore[reportMissingImports]

    open_store: Any = HTTPStore.from_url if root.startswith(_PLAIN) else from_url
    try:
        return open_store(
            root,
            # Short: `objects.Bucket` waits longer, and says so.
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=20)},
            client_options={
                "allow_http": True,  # of an endpoint that begins with http://
                "connect_timeout": timedelta(seconds=10),
                "timeout": timedelta(seconds=120),
            },
            **_credentials(root),
        )
    except exceptions.BaseError as error:
        raise ValueError(f"can't use {root}: {words(str(error))}") from error


def _credentials(root: str) -> dict[str, Any]:
    """Returns where the credentials of S3 are from: the profiles in ~/.aws need boto3."""
    given = {"AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"} & os.environ.keys()
    if not root.startswith("s3://") or given or importlib.util.find_spec("boto3") is None:
        return {}
    import boto3  # pyright: ignore[reportMissingImports]
    from obstore.auth.boto3 import (  # pyright: ignore[reportMissingImports]
        Boto3CredentialProvider,
    )

    session = boto3.Session()
    return {} if session.get_credentials() is None else {
        "credential_provider": Boto3CredentialProvider(session)
    }  # fmt: skip


def _entry(found: Any) -> Entry:
    return Entry(found["path"], found["size"], *_versions(found))


def _versions(found: Any) -> tuple[str, str]:
    """Returns what reads and what conditional writes compare."""
    tag, generation = found["e_tag"] or "", found["version"] or ""
    if tag and not tag.startswith(_WEAK) or generation:
        return tag or generation, generation
    changed = found.get("last_modified")  # a plain server may know the time only
    return f"{_MODIFIED}{changed.isoformat()}" if changed else "", generation


def _time(version: str) -> datetime:
    return datetime.fromisoformat(version.removeprefix(_MODIFIED))


def _mode(over: Over | Entry) -> Any:
    """Returns the condition of a write: S3 compares the ETag, Google the generation."""
    if isinstance(over, Entry):
        generation = {"version": over.generation} if over.generation else {}
        return {"e_tag": over.version, **generation}
    return "create" if over == Over.NOTHING else "overwrite"


def _sorted_errors(request: Callable) -> Callable:
    """Returns a request whose errors are a `Problem`."""
    from obstore import exceptions  # pyright: ignore[reportMissingImports]

    def asked(*arguments: Any) -> Any:
        try:
            return request(*arguments)
        except (exceptions.BaseError, OSError, NotImplementedError) as error:
            raise Problem(kind_of(error), words(str(error))) from error

    return asked


def kind_of(error: Exception) -> Kind:
    """Returns what is wrong, by the type and the text of an error of obstore."""
    name, text = type(error).__name__, str(error)
    found = _STATUS.search(text)
    status = int(found[1]) if found else 0
    if any(place in text for place in _NO_CREDENTIALS):
        return Kind.NO_CREDENTIALS
    if any(part in text for part in _NO_BUCKET):
        return Kind.NO_BUCKET
    if isinstance(error, FileNotFoundError) or status == 404:
        return Kind.NO_OBJECT
    if name in ("PreconditionError", "AlreadyExistsError") or status in (409, 412):
        return Kind.CHANGED
    if name in ("NotSupportedError", "NotImplementedError") or status == 501:
        return Kind.UNCONDITIONAL
    if name in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403):
        return Kind.DENIED
    # A status below 500 is an answer; without one, the connection failed.
    passing = status >= 500 or status == _TOO_MANY or (not status and "HTTP error" in text)
    return Kind.PASSING if passing else Kind.OTHER


def words(text: str) -> str:
    """Returns the reason in an error of obstore, without its XML and its debug output."""
    code = _CODE.search(text)
    first = text.partition("\n\nDebug source")[0].partition("<?xml")[0].partition("\n")[0]
    reason = first.rpartition(" - ")[2].strip().rstrip(":")
    return f"{reason} ({code[1]})" if code else reason
