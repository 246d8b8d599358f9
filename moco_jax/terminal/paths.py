"""Several paths in one argument, joined by '+'."""

import glob
import os
import re
from collections.abc import Callable

SEPARATOR = "+"
SCHEMES = ("s3://", "gs://")  # of the buckets that most people use, for messages
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9.-]+://")
# URLs that lack a part, of the schemes that people use: 's3:/b/x', 's3:b/x', 's3//b/x'.
_MISTYPED = re.compile(
    r"(s3a?|gs|gcs|az|azure|abfss?|adl|https?|hf|hdfs)(?::/*|//+)(.*)", re.IGNORECASE
)
_BRACES = re.compile(r"\{[^{}]*\}")


def parts(path: str) -> list[str]:
    """Returns the paths that are joined: '/a+/b' gives ['/a', '/b'], with '~' expanded.

    A path that exists as it is written is one path, and so is each part that exists: 'c+++/b' may
    be 'c++' and '/b'. A pattern exists if it names a file. A part that does not exist ends at the
    next separator behind its folder, and so does a URL: its bucket is not asked.
    """
    if SEPARATOR not in path or _exists(path):
        return [os.path.expanduser(path)]
    pieces = path.split(SEPARATOR)
    found: list[str] = []
    while pieces:
        lengths = [1] if is_url(pieces[0]) else range(len(pieces), 0, -1)
        tried = [SEPARATOR.join(pieces[:end]) for end in lengths]
        part = next(filter(_exists, tried), None) or next(filter(_folder_exists, tried), pieces[0])
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


def without_slash(url: str) -> str:
    """Returns a URL without the slashes at its end, those of its scheme excepted."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rstrip('/')}"


def mistyped_url(path: str) -> str:
    """Returns the URL that a path seems to mean but is not: 's3:/b/x' gives 's3://b/x', else ''.

    A path whose first folder exists is a path, and so is './s3:/b/x'.
    """
    if is_url(path) or os.path.exists(path.partition("/")[0]):
        return ""
    stripped = path.strip(" \t\n\"'")
    found = _MISTYPED.fullmatch(stripped)
    return f"{found[1].lower()}://{found[2].lstrip('/')}" if found else ""


def check_no_url(path: str, flag: str) -> None:
    """Raises a ValueError for the path of a flag or key if it seems to mean a URL."""
    if url := mistyped_url(path):
        raise ValueError(
            f"{flag}={path} is no URL and no path that exists; did you mean {flag}={url}? A folder "
            f"of this name is ./{path}"
        )


def below(root: str, path: str) -> str:
    """Returns a path that may be relative to root, absolute, or a URL."""
    return path if is_url(path) else os.path.join(root, path)


def cache_folder() -> str:
    """Returns the folder for what can be read or computed again, such as indices of shards."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "moco_jax")


def is_pattern(path: str) -> bool:
    """Returns whether a path, no file or folder itself, has braces or '*' behind its folder."""
    if not ("{" in path or "*" in path) or os.path.exists(path):
        return False
    rest = path if is_url(path) else path.removeprefix(existing_folder(path))
    return "{" in rest or "*" in rest


def existing_folder(path: str) -> str:
    """Returns the deepest folder at the start of a path that exists, '' for none.

    Braces and '*' in it are plain characters.
    """
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def matches(folder: str, rest: str) -> list[str]:
    """Returns the files that a pattern with '*' names behind a folder, in any order.

    Brackets and question marks are plain characters.
    """
    plain = re.sub(r"([\[?])", r"[\1]", rest)
    return [path for path in glob.iglob(glob.escape(folder) + plain) if os.path.isfile(path)]


def _folder_exists(path: str) -> bool:
    """Returns whether all separators in a path are in the folder that exists."""
    path = os.path.expanduser(path)
    return SEPARATOR not in path.removeprefix(existing_folder(path))


def _exists(path: str) -> bool:
    path = os.path.expanduser(path)
    if not path or os.path.exists(path):
        return bool(path)
    if not is_pattern(path):
        return False
    folder = existing_folder(path)
    rest, count = path.removeprefix(folder), 1
    while count:
        rest, count = _BRACES.subn("*", rest)
    return bool(matches(folder, rest))
