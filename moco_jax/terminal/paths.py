"""Several paths in one argument, joined by '+'."""

import os
from collections.abc import Callable

SEPARATOR = "+"


def parts(path: str) -> list[str]:
    """Returns the paths that are joined: '/a+/b' gives ['/a', '/b'], with '~' expanded.

    A path that exists as it is written is one path, and so is each part that exists: 'c+++/b' may
    be 'c++' and '/b'. A part that does not exist ends at the next separator.
    """
    if SEPARATOR not in path or _exists(path):
        return [os.path.expanduser(path)]
    pieces = path.split(SEPARATOR)
    found: list[str] = []
    while pieces:
        tried = (SEPARATOR.join(pieces[:end]) for end in range(len(pieces), 0, -1))
        part = next(filter(_exists, tried), pieces[0])
        found.append(os.path.expanduser(part))
        pieces = pieces[part.count(SEPARATOR) + 1 :]
    return found


def each(change: Callable[[str], str], path: str) -> str:
    """Returns the joined paths with a change of each of them, '~' expanded before."""
    return SEPARATOR.join(map(change, parts(path)))


def missing(path: str) -> str:
    """Returns the first of the joined paths that does not exist, '' if all do.

    The files that a pattern names are looked for when it is opened.
    """
    absent = (p for p in parts(path) if not os.path.exists(p) and not is_pattern(p))
    return next((part or path for part in absent), "")


def is_pattern(path: str) -> bool:
    """Returns whether a path has braces or '*', and is no file or folder itself."""
    return ("{" in path or "*" in path) and not os.path.exists(path)


def _exists(path: str) -> bool:
    return bool(path) and os.path.exists(os.path.expanduser(path))
