"""Which config key a wrong one may mean."""

import collections
import difflib
from collections.abc import Iterable, Iterator

from ml_collections import ConfigDict

_SAME_WORD = 0.75  # of difflib: at least this alike is a misspelling


def nearest(key: str, known: Iterable[str]) -> str:
    """Returns the known keys that a wrong one may mean, in words, "" if none is like it.

    Keys of groups have dots: 'image_size' may mean 'data.image_size'.
    """
    known, by_last = list(known), collections.defaultdict(list)
    for full in known:
        by_last[full.rpartition(".")[2]].append(full)
    last = key.rpartition(".")[2]
    in_groups = by_last.get(last, [])
    near = difflib.get_close_matches(key, in_groups or known, n=1, cutoff=_SAME_WORD) or in_groups
    if not near:
        names = difflib.get_close_matches(last, by_last, n=1, cutoff=_SAME_WORD)
        near = by_last[names[0]] if names else difflib.get_close_matches(key, known, n=1)
    return " or ".join(map(repr, near))


def of(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields the keys of a config, those of its groups with dots."""
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, ConfigDict):
            yield from of(value, f"{prefix}{key}.")
