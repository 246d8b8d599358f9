"""Joins the data sets of several paths into one: 'own+imagenet'.

Their classes are joined by name. Images of a part without classes have no label. The test images
are those of the parts that have some.
"""

import os
from collections.abc import Sequence

import numpy as np

from moco_jax.data.sources.class_names import renumbered
from moco_jax.data.sources.file_types import counted
from moco_jax.data.sources.source import NO_LABEL, ComputedNames, Opened, Source
from moco_jax.terminal.paths import SEPARATOR
from moco_jax.text import printable


def join(opened: Sequence[Opened], paths: Sequence[str]) -> Opened:
    """Returns several data sets as one, in this order.

    Raises:
      ValueError: if a test image has a class that no training image has.
    """
    names = _short(paths)
    train = _joined([part.train for part in opened], SEPARATOR.join(names))
    tested = [(name, part.test) for name, part in zip(names, opened, strict=True) if part.test]
    test = None
    if tested:
        test = _joined([found for _, found in tested], SEPARATOR.join(name for name, _ in tested))
        test = renumbered(test, train.class_names, test.name) if train.class_names else test
    counts = (f"{name} ({len(part.train)})" for name, part in zip(names, opened, strict=True))
    notes = [
        f"{name}: {note}" for name, part in zip(names, opened, strict=True) for note in part.notes
    ]
    if train.labels is not None and (count := int((train.labels == NO_LABEL).sum())):
        what = counted(count, "image")
        notes.insert(0, f"{what} of {len(train)} have no label: they are trained on, not evaluated")
    named = zip(names, opened, strict=True)
    about = "; ".join(f"{name}: {part.about_test}" for name, part in named if part.about_test)
    test_in = " + ".join(name for name, _ in tested)
    return Opened(train, test, tuple(notes), " + ".join(counts), test_in, about)


def _short(paths: Sequence[str]) -> list[str]:
    """Returns the last names of paths, the whole paths if two have the same."""
    names = [printable(os.path.basename(path.rstrip("/"))) for path in paths]
    return names if len(set(names)) == len(names) else [printable(path) for path in paths]


def _joined(sources: Sequence[Source], name: str) -> Source:
    """Returns the images of several sources as one."""
    first = np.cumsum([0, *map(len, sources)])
    class_names = tuple(dict.fromkeys(name for source in sources for name in source.class_names))
    labels = None
    if class_names:
        labels = np.concatenate([_labels(source, class_names) for source in sources])

    def place(index: int) -> tuple[Source, int]:
        part = int(np.searchsorted(first, index, "right")) - 1
        return sources[part], index - int(first[part])

    def read(index: int) -> bytes | np.ndarray:
        source, own = place(index)
        return source.read(own)

    def names_of(indices: np.ndarray) -> list[str]:
        places = map(place, indices.tolist())
        return [source.names[own] for source, own in places]

    names = ComputedNames(int(first[-1]), names_of)
    remote = any(source.remote for source in sources)
    return Source(name, read, names, labels, class_names, _groups(sources), remote)


def _groups(sources: Sequence[Source]) -> np.ndarray | None:
    """Returns the groups of all images; those that are read by themselves are one group."""
    if all(source.groups is None for source in sources):
        return None
    parts, following = [], 0
    for source in sources:
        own = np.zeros(len(source), np.int32) if source.groups is None else source.groups
        parts.append(own + np.int32(following))
        following = int(parts[-1].max()) + 1
    return np.concatenate(parts)


def _labels(source: Source, class_names: tuple[str, ...]) -> np.ndarray:
    if source.labels is None:
        return np.full(len(source), NO_LABEL, np.int32)
    labels = renumbered(source, class_names, source.name).labels
    assert labels is not None
    return labels
