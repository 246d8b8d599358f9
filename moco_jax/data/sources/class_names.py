"""Classes of several splits or data sets as one: matched by name, never by position."""

import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np

from moco_jax.data.sources.file_types import counted, listed
from moco_jax.data.sources.source import NO_LABEL, Source

_UNKNOWN = -2


def renumbered(source: Source, class_names: Sequence[str], where: str) -> Source:
    """Returns a labelled source whose labels are indices into other class names: by name.

    Raises:
      ValueError: if an image has a class that is not among them.
    """
    assert source.labels is not None
    if source.class_names == tuple(class_names):
        return source
    number = {name: label for label, name in enumerate(class_names)}
    new = np.array(
        [*(number.get(name, _UNKNOWN) for name in source.class_names), NO_LABEL], np.int32
    )
    labels = new[source.labels]
    if (labels == _UNKNOWN).any():
        unknown = [
            source.class_names[label] for label in np.unique(source.labels[labels == _UNKNOWN])
        ]
        raise ValueError(
            f"{where}: {source.name} has {counted(len(unknown), 'class', 'classes')} "
            f"({listed(unknown)}) that {'is' if len(unknown) == 1 else 'are'} not among the "
            f"{len(class_names)} classes of train; rename them, or set --config.data.test_split='' "
            "to hold out images of train instead"
        )
    return dataclasses.replace(source, labels=labels, class_names=tuple(class_names))


def named_classes(labels: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns labels int32 [N] and class names that differ: equal names are one class.

    Names that differ only in the Unicode form of accents (NFC, NFD) are equal.
    """
    known = list(map(plain, names))
    unique = tuple(dict.fromkeys(known))
    if len(unique) == len(names):
        return labels.astype(np.int32), unique
    number = {name: label for label, name in enumerate(unique)}
    return np.array([*(number[name] for name in known), NO_LABEL], np.int32)[labels], unique


def plain(name: str) -> str:
    """Returns the name of a class in the Unicode form in which classes are compared, NFC."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def sorted_classes(labels: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns labels int32 [N] and class names in their order; whole numbers by value.

    Where the names are whole numbers, -1 is no class.
    """
    labels, found = named_classes(labels, names)
    kept = [label for label, name in enumerate(found) if name != "-1"]
    numbers = all(map(_is_number, (found[label] for label in kept)))
    if not numbers:
        kept = range(len(found))
    order = sorted(kept, key=lambda i: (int(found[i]) if numbers else 0, found[i]))
    new = np.full(len(found) + 1, NO_LABEL, np.int32)
    new[order] = np.arange(len(order))
    return new[labels], tuple(found[i] for i in order)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 19
