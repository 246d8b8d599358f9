"""The rows of a table as a source of images.

A table may have millions of rows, so nothing here keeps a Python object for each of them: paths are
an array of StringDType (16 bytes and the text), labels are int32.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import numpy as np

from moco_jax.data.sources.source import NO_LABEL, ComputedNames, Source

TEXT = np.dtypes.StringDType()
_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one split, as they are stored."""

    read: Callable[[int], bytes]
    names: Callable[[np.ndarray], list[str]]  # of rows int64 [M]
    paths: np.ndarray | None  # TEXT [N]; None if a row has no path
    labels: np.ndarray  # int32 [N], NO_LABEL for a row without one
    class_names: tuple[str, ...]  # indexed by label
    groups: np.ndarray | None = None  # int32 [N], as `Source` has them


def text_array(texts: Iterable[str], count: int) -> np.ndarray:
    """Returns `count` texts as an array of TEXT, made in parts."""
    texts, array = iter(texts), np.empty(count, TEXT)
    for start in range(0, count, _CHUNK):
        end = min(start + _CHUNK, count)
        array[start:end] = list(itertools.islice(texts, end - start))
    return array


def as_source(rows: Rows, name: str) -> Source:
    """Returns the rows in the order that a folder of the same images has.

    A folder is read class by class, and by path in each class. Rows without paths stay in their
    order.
    """
    order = _order(rows)
    labelled = bool((rows.labels != NO_LABEL).any())
    return Source(
        name,
        lambda index: rows.read(int(order[index])),
        ComputedNames(len(order), lambda indices: rows.names(order[indices])),
        rows.labels[order] if labelled else None,
        rows.class_names if labelled else (),
        None if rows.groups is None else rows.groups[order],
    )


def _order(rows: Rows) -> np.ndarray:
    """Returns the rows in the order of a folder, int64 [N]."""
    if rows.paths is None:
        return np.arange(len(rows.labels))
    rank = np.full(len(rows.class_names) + 1, NO_LABEL)  # the last one is that of NO_LABEL
    rank[np.argsort(np.array(rows.class_names, TEXT), kind="stable")] = np.arange(len(rank) - 1)
    # numpy sorts integers of 16 bits in linear time.
    rank = rank.astype(np.int16 if len(rank) < 1 << 15 else np.int32)[rows.labels]
    order = np.argsort(rank, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(rank[order])) + 1):
        paths = rows.paths[part]
        if not (paths[:-1] <= paths[1:]).all():
            part[:] = part[np.argsort(paths, kind="stable")]
    return order
