"""Objects in buckets by URL: patience with a server that is gone, and errors in words.

An error that concerns the bucket ends the run: images that can't be reached are not damaged images,
which a run may skip.
"""

import contextlib
import contextvars
import functools
import os
import pathlib
import posixpath
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from moco_jax.buckets.client import Client, Entry, Kind, Over, Problem
from moco_jax.buckets.schemes import connect
from moco_jax.terminal import logs

# Seconds that a request is repeated, before and after the first answer of the bucket: a run that
# has begun is worth more waiting than a wrong endpoint.
FIRST_PATIENCE, PATIENCE = 20.0, 1800.0
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 15.0
_SILENT = 2.0  # seconds of waiting that need no message
_SLICE = 0.5  # seconds between two looks whether to go on
_CREDENTIALS = {
    ("s3://", "s3a://"): "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles in ~/.aws need "
    "boto3), or AWS_SKIP_SIGNATURE=true for a public bucket",
    ("gs://",): "set GOOGLE_APPLICATION_CREDENTIALS to a key file or run gcloud auth "
    "application-default login, or set GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    ("az", "abfs", "adl"): "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or "
    "AZURE_SKIP_SIGNATURE=true for a public container",
    ("",): "see the documentation of this store in fsspec",
}
_READING = "to list the bucket and to read its objects"
_WRITING = "to list the bucket, and to read, write and delete its objects"
_PASSWORD = re.compile("[^/@]*:[^/@]*@")  # at the start of a URL without its scheme
_SIGNED = re.compile("[?&](X-Amz-Signature|X-Goog-Signature|Signature|sig)=", re.IGNORECASE)
# The flag or key that gives the URLs, for errors.
_flag = contextvars.ContextVar("flag", default="--config.data.path")

T = TypeVar("T")


class BucketError(ValueError):
    """Raised if a bucket can't be used; the message has the reason and what to do."""

    def __init__(self, text: str, kind: Kind = Kind.OTHER):
        super().__init__(text)
        self.kind = kind


class Changed(OSError):
    """Raised if an object is another one than the caller knows."""


_wanted: list[Callable[[], bool]] = [lambda: True]  # the last one: whether to go on waiting


@contextlib.contextmanager
def waiting_while(wanted: Callable[[], bool]) -> Iterator[None]:
    """Requests that begin within the block wait for a server only while `wanted` returns true."""
    _wanted.append(wanted)
    try:
        yield
    finally:
        _wanted.pop()


@contextlib.contextmanager
def given_by(flag: str) -> Iterator[None]:
    """Errors within the block name this flag or key, in this thread."""
    token = _flag.set(flag)
    try:
        yield
    finally:
        _flag.reset(token)


class Bucket:
    """One bucket, and whether its server answers; safe to use from threads."""

    def __init__(self, root: str, client: Client):
        self._root, self.client = root, client
        self._answered = False
        self._gone_since: float | None = None  # from the first request that is repeated
        self._said = False  # whether the message that it is gone is printed
        self._lock = threading.Lock()

    def ask(
        self,
        url: str,
        request: Callable[[], T],
        needs: str = _READING,
        wanted: Callable[[], bool] | None = None,
    ) -> T:
        """Returns the answer to a request, which is repeated as long as the server is gone.

        Args:
          url: of the object or folder, for errors.
          request: is made again and again.
          needs: what the credentials must allow, for errors.
          wanted: whether to go on waiting for a server that is gone; default see `waiting_while`.

        Raises:
          FileNotFoundError: if there is no such object.
          Changed: if the object is another one by now.
          BucketError: if the bucket can't be used.
        """
        delay, wanted = _FIRST_DELAY, wanted or _wanted[-1]
        while True:
            try:
                answer = request()
            except Problem as problem:
                waited = self._gone() if problem.kind == Kind.PASSING else 0.0
                patience = PATIENCE if self._answered else FIRST_PATIENCE
                if problem.kind != Kind.PASSING or waited > patience or not wanted():
                    raise _error(
                        problem, self._root, url, waited, needs, self._answered
                    ) from problem
                self._say_gone(problem, waited, patience)
            else:
                self._here()
                return answer
            _sleep(delay * random.uniform(0.5, 1.0), wanted)  # not all threads at once
            delay = min(2 * delay, _LONGEST_DELAY)

    def _gone(self) -> float:
        """Returns for how many seconds the server has been gone, for all threads."""
        with self._lock:
            self._gone_since = self._gone_since or time.monotonic()
            return time.monotonic() - self._gone_since

    def _say_gone(self, problem: Problem, waited: float, patience: float) -> None:
        with self._lock:
            if self._said or waited <= _SILENT:
                return
            self._said = True
        logs.warning(
            "%s does not answer (%s); waiting for it up to %.0f s", self._root, problem, patience
        )

    def _here(self) -> None:
        self._answered = True
        if self._gone_since is None:
            return
        with self._lock:
            since, said, self._gone_since, self._said = self._gone_since, self._said, None, False
        if since is not None and said:
            logs.warning("%s answers again after %.0f s", self._root, time.monotonic() - since)


def _sleep(seconds: float, wanted: Callable[[], bool]) -> None:
    """Sleeps, less if waiting is not wanted any more."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and wanted():
        time.sleep(min(left, _SLICE))


@functools.cache
def bucket(root: str) -> Bucket:
    """Returns the bucket of a URL without a key.

    Raises:
      BucketError: if a package is not installed, or the URL can't be used.
    """
    try:
        return Bucket(root, connect(root))
    except ValueError as error:
        raise BucketError(str(error)) from error


def split(url: str) -> tuple[str, str]:
    """Returns the root of a bucket and the key in it: 's3://b/x/y' gives 's3://b' and 'x/y'.

    Raises:
      BucketError: if the URL names no bucket, or has a password or a signature.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if _PASSWORD.match(rest):
        shown = f"{scheme}://{rest.partition(':')[0]}:...@{rest.partition('@')[2]}"
        raise BucketError(
            f"{_flag.get()}={shown} has a password, which the files of a run would show; leave it "
            "out, and give it in the settings of the store"
        )
    if scheme in ("http", "https") and _SIGNED.search(rest):
        raise BucketError(
            f"{_flag.get()}={scheme}://{rest.partition('?')[0]}?... is a signed URL, which can't "
            "be read; give the URL of the bucket, such as s3://bucket/x, and credentials"
        )
    name, _, key = rest.partition("/")
    if not name:
        raise BucketError(f"{_flag.get()}={url} names no bucket; allowed: {scheme}://bucket/x")
    return f"{scheme}://{name}", posixpath.normpath(f"/{key}").lstrip("/")


def stat(url: str, wanted: Callable[[], bool] | None = None, *, to_write: bool = False) -> Entry:
    """Returns size and version of an object.

    Args:
      url: of the object.
      wanted: see `Bucket.ask`, which raises the errors.
      to_write: whether a write follows, for errors.
    """
    root, key = split(url)
    if not key:
        raise FileNotFoundError(f"there is no object {url}: it is a bucket")
    place = bucket(root)
    needs = _WRITING if to_write else _READING
    return place.ask(url, lambda: place.client.stat(key), needs, wanted)


def read(url: str, entry: Entry, offset: int, size: int) -> bytes:
    """Returns bytes of an object, fewer at its end; raises as `Bucket.ask`."""
    size = min(size, entry.size - offset)
    if size <= 0:
        return b""
    place = bucket(split(url)[0])
    return place.ask(url, lambda: place.client.read(entry, offset, size))


def read_whole(url: str, limit: int, wanted: Callable[[], bool] | None = None) -> tuple[int, bytes]:
    """Returns size and contents of an object, b'' if it is larger; see `Bucket.ask`."""
    root, key = split(url)
    place = bucket(root)
    return place.ask(url, lambda: place.client.whole(key, limit), wanted=wanted)


def below(url: str) -> list[Entry]:
    """Returns all objects below a folder, [] if there are none; raises as `Bucket.ask`."""
    root, key = split(url)
    place = bucket(root)
    return place.ask(url, lambda: place.client.names(key))


def directly_in(url: str) -> list[Entry]:
    """Returns the objects of a folder without those of its subfolders; raises as `Bucket.ask`."""
    root, key = split(url)
    place = bucket(root)
    return place.ask(url, lambda: place.client.names_in(key))


def write(
    url: str,
    data: bytes | pathlib.Path,
    over: Over | Entry = Over.ANYTHING,
    wanted: Callable[[], bool] | None = None,
) -> Entry:
    """Writes bytes or a file to an object; the whole object appears at once.

    Args:
      url: of the object.
      data: the contents, or the file that has them.
      over: what is replaced; an entry, of `stat` or of an earlier write, is this version only.
      wanted: see `Bucket.ask`.

    Returns:
      The object, for a later write over it.

    Raises:
      Changed: if there is another object than `over` names. A write whose answer is lost is
        repeated, so that it may be our own.
      FileNotFoundError: if there is no such file.
      BucketError: as `Bucket.ask`; of `Kind.UNCONDITIONAL` if the server knows no conditions.
    """
    root, key = split(url)
    place = bucket(root)
    return place.ask(url, lambda: place.client.write(key, data, over), _WRITING, wanted)


def remove(url: str, wanted: Callable[[], bool] | None = None) -> None:
    """Removes an object if it is there; raises as `Bucket.ask`."""
    root, key = split(url)
    place = bucket(root)
    place.ask(url, lambda: place.client.remove(key), _WRITING, wanted)


def _endpoint(root: str, answered: bool) -> str:
    """Returns the hint about a server that the user has set and that has never answered."""
    wrong = root.startswith("s3") and "AWS_ENDPOINT_URL" in os.environ and not answered
    return "; AWS_ENDPOINT_URL must be the URL of its server" if wrong else ""


def _error(
    problem: Problem, root: str, url: str, waited: float, needs: str, answered: bool
) -> Exception:
    """Returns the error for the user; `answered` is whether the server ever answered."""
    kind = problem.kind
    if kind == Kind.NO_OBJECT:
        return FileNotFoundError(f"there is no object {url}")
    if kind == Kind.CHANGED:
        return Changed(f"can't read {url}: it was changed or replaced after it was listed")
    if kind == Kind.NO_BUCKET:
        return BucketError(f"there is no bucket {root}: correct {_flag.get()}", kind)
    if kind == Kind.DENIED:
        return BucketError(
            f"permission denied for {url} ({problem}): the credentials must allow {needs}", kind
        )
    if kind == Kind.NO_CREDENTIALS:
        how = next(text for schemes, text in _CREDENTIALS.items() if root.startswith(schemes))
        return BucketError(f"there are no credentials for {root} ({problem}): {how}", kind)
    if kind == Kind.PASSING:
        how = f"did not answer for {waited:.0f} s" if waited >= 1 else "does not answer"
        return BucketError(f"{root} {how} ({problem}){_endpoint(root, answered)}", kind)
    if kind == Kind.NO_LISTS:
        return BucketError(
            f"there is no object {url}, and {root} can't list a folder: {_flag.get()} must name "
            f"files that are there, such as {root}/a.tar or '{root}/a-{{000..255}}.tar'",
            kind,
        )
    hint = "; AWS_REGION must be the region of the bucket" if "redirect" in str(problem) else ""
    return BucketError(
        f"can't {'read' if needs == _READING else 'write'} {url}: {problem}{hint}", kind
    )
