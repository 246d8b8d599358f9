"""Objects in buckets by URL: patience with a server that is gone, and errors in words.

An error that concerns the bucket ends the run: images that can't be reached are not damaged images,
which a run may skip.
"""

import functools
import posixpath
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from moco_jax.data.sources.storage.client import Client, Entry, Kind, Problem, connect
from moco_jax.terminal import logs

# Seconds that a request is repeated, before and after the first answer of the bucket: a run that
# has begun is worth more waiting than a wrong endpoint.
FIRST_PATIENCE, PATIENCE = 20.0, 1800.0
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 15.0
_SILENT = 2.0  # seconds of waiting that need no message
_CREDENTIALS = {
    "s3://": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles in ~/.aws need boto3), or "
    "AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs://": "set GOOGLE_APPLICATION_CREDENTIALS to a key file or run gcloud auth "
    "application-default login, or set GOOGLE_SKIP_SIGNATURE=true for a public bucket",
}

T = TypeVar("T")


class BucketError(ValueError):
    """Raised if a bucket can't be read; the message has the reason and what to do."""


class Bucket:
    """One bucket, and whether its server answers; safe to use from threads."""

    def __init__(self, root: str, client: Client):
        self._root, self.client = root, client
        self._answered = False
        self._gone_since: float | None = None  # after the message that it is gone
        self._lock = threading.Lock()

    def ask(self, url: str, request: Callable[[], T]) -> T:
        """Returns the answer to a request, which is repeated as long as the server is gone.

        Raises:
          FileNotFoundError: if there is no such object.
          OSError: if the object is another one by now.
          BucketError: if the bucket can't be read.
        """
        begun, delay = time.monotonic(), _FIRST_DELAY
        while True:
            try:
                answer = request()
            except Problem as problem:
                waited = time.monotonic() - begun
                patience = PATIENCE if self._answered else FIRST_PATIENCE
                if problem.kind != Kind.PASSING or waited > patience:
                    raise _error(problem, self._root, url, waited) from problem
                if waited > _SILENT:
                    self._gone(problem)
            else:
                self._here()
                return answer
            time.sleep(delay * random.uniform(0.5, 1.0))  # not all threads at once
            delay = min(2 * delay, _LONGEST_DELAY)

    def _gone(self, problem: Problem) -> None:
        with self._lock:
            if self._gone_since is not None:
                return
            self._gone_since = time.monotonic() - _SILENT
        patience = PATIENCE if self._answered else FIRST_PATIENCE
        logs.warning(
            "%s does not answer (%s); waiting for it up to %.0f s", self._root, problem, patience
        )

    def _here(self) -> None:
        self._answered = True
        if self._gone_since is None:
            return
        with self._lock:
            since, self._gone_since = self._gone_since, None
        if since is not None:
            seconds = time.monotonic() - since
            logs.warning("%s answers again after %.0f s", self._root, seconds)


@functools.cache
def bucket(root: str) -> Bucket:
    """Returns the bucket of a URL without a key."""
    return Bucket(root, connect(root))


def split(url: str) -> tuple[str, str]:
    """Returns the root of a bucket and the key in it: 's3://b/x/y' gives 's3://b' and 'x/y'.

    Raises:
      BucketError: if the URL names no bucket.
    """
    scheme, _, rest = url.partition("://")
    name, _, key = rest.partition("/")
    if not name:
        raise BucketError(f"--config.data.path={url} names no bucket; allowed: {scheme}://bucket/x")
    return f"{scheme}://{name}", posixpath.normpath(f"/{key}").lstrip("/")


def stat(url: str) -> Entry:
    """Returns size and version of an object; raises as `Bucket.ask`."""
    root, key = split(url)
    if not key:
        raise FileNotFoundError(f"there is no object {url}: it is a bucket")
    place = bucket(root)
    return place.ask(url, lambda: place.client.stat(key))


def read(url: str, entry: Entry, offset: int, size: int) -> bytes:
    """Returns bytes of an object, fewer at its end; raises as `Bucket.ask`."""
    size = min(size, entry.size - offset)
    if size <= 0:
        return b""
    place = bucket(split(url)[0])
    return place.ask(url, lambda: place.client.read(entry, offset, size))


def read_whole(url: str, limit: int) -> tuple[int, bytes]:
    """Returns size and contents of an object, b'' if it is larger; raises as `Bucket.ask`."""
    root, key = split(url)
    place = bucket(root)
    return place.ask(url, lambda: place.client.whole(key, limit))


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


def _error(problem: Problem, root: str, url: str, waited: float) -> Exception:
    """Returns the error for the user."""
    if problem.kind == Kind.NO_OBJECT:
        return FileNotFoundError(f"there is no object {url}")
    if problem.kind == Kind.CHANGED:
        return OSError(f"can't read {url}: it was changed or replaced after it was listed")
    if problem.kind == Kind.NO_BUCKET:
        return BucketError(f"there is no bucket {root}: correct --config.data.path")
    if problem.kind == Kind.DENIED:
        return BucketError(
            f"permission denied for {url} ({problem}): the credentials must allow to list the "
            "bucket and to read its objects"
        )
    if problem.kind == Kind.NO_CREDENTIALS:
        how = next(text for scheme, text in _CREDENTIALS.items() if root.startswith(scheme))
        return BucketError(f"there are no credentials for {root} ({problem}): {how}")
    if problem.kind == Kind.PASSING:
        return BucketError(f"{root} did not answer for {waited:.0f} s ({problem})")
    hint = "; AWS_REGION must be the region of the bucket" if "redirect" in str(problem) else ""
    return BucketError(f"can't read {url}: {problem}{hint}")
