"""Several paths in one argument, joined by '+'."""

import os
import re
from collections.abc import Callable

SEPARATOR = "+"
SCHEMES = ("s3://", "gs://")  # of the buckets that most people use, for messages
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9.-]+://")


def parts(path: str) -> list[str]:
    """Returns the paths that are joined: '/a+/b' gives ['/a', '/b'], with '~' expanded.

    A path that exists as it is written is one path, and so is each part that exists: 'c+++/b' may
    be 'c++' and '/b'. A part that does not exist ends at the next separator, and so does a URL:
    its bucket is not asked.
    """
    if SEPARATOR not in path or _exists(path):
        return [os.path.expanduser(path)]
    pieces = path.split(SEPARATOR)
    found: list[str] = []
    while pieces:
        lengths = [1] if is_url(pieces[0]) else range(len(pieces), 0, -1)
        tried = (SEPARATOR.join(pieces[:end]) for end in lengths)
        part = next(filter(_exists, tried), pieces[0])
        found.append(os.path.expanduser(part))
        pieces = pieces[part.count(SEPARATOR) + 1 :]
    return found


def each(change: Callable[[str], str], path: str) -> str:
    """Returns the joined paths with a change of each that is no URL, '~' expanded before."""
    return SEPARATOR.join(part if is_url(part) else change(part) for part in parts(path))


def missing(path: str) -> str:
    """Returns the first of the joined paths that does not exist, '' if all do.

    The files that a pattern names, and those in a bucket, are looked for when they are opened.
    """
    absent = (p for p in parts(path) if not (os.path.exists(p) or is_pattern(p) or is_url(p)))
    return next((part or path for part in absent), "")


def is_url(path: str) -> bool:
    """Returns whether a path is a URL, such as 's3://bucket/x.tar'."""
    return _SCHEME.match(path) is not None


def below(root: str, path: str) -> str:
    """Returns a path that may be relative to root, absolute, or a URL."""
    return path if is_url(path) else os.path.join(root, path)


def cache_folder() -> str:
    """Returns the folder for what can be read or computed again, such as indices of shards."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "moco_jax")


def is_pattern(path: str) -> bool:
    """Returns whether a path has braces or '*', and is no file or folder itself."""
    return ("{" in path or "*" in path) and not os.path.exists(path)


def _exists(path: str) -> bool:
    return bool(path) and os.path.exists(os.path.expanduser(path))
