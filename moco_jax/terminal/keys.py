"""Which config key a wrong one may mean."""

import difflib
from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict

_SAME_WORD = 0.75  # of difflib: at least this alike is a misspelling


def nearest(key: str, known: Iterable[str]) -> str:
    """Returns the known key that a wrong one may mean, "" if none is like it.

    Keys of groups have dots: 'image_size' may mean 'data.image_size'.
    """
    known = list(known)
    last = key.rpartition(".")[2]
    by_last = {full.rpartition(".")[2]: full for full in reversed(known)}
    if last in by_last:  # in another group
        return by_last[last]
    if near := difflib.get_close_matches(key, known, n=1, cutoff=_SAME_WORD):
        return near[0]
    near = difflib.get_close_matches(last, by_last, n=1, cutoff=_SAME_WORD)
    near = [by_last[name] for name in near] or difflib.get_close_matches(key, known, n=1)
    return near[0] if near else ""


def of(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields the keys of a config, those of its groups with dots."""
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, ConfigDict):
            yield from of(value, f"{prefix}{key}.")
