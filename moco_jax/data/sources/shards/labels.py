"""Decides which files beside the images are their labels, and numbers the classes.

Of the kinds of `samples.KINDS` the first one is used that all images have. The texts of .txt files
are classes only if there are at least four images for each: captions differ from image to image.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from moco_jax.data.sources.class_names import plain
from moco_jax.data.sources.file_types import cut
from moco_jax.data.sources.shards.samples import KINDS, Samples

_MOST_CLASSES = 100_000  # or twice the images, as of arrays
_IMAGES_A_TEXT = 4
_CHANGE = '"labels" in shards.json names the kind'
_INTEGER = re.compile(r"[0-9]{1,9}")


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a set of shards, and the labels of its images."""

    labels: np.ndarray  # int32 [N]
    names: tuple[str, ...]
    kind: str  # of the labels, see `samples.KINDS`
    by_number: bool  # whether the labels are integers


def classes(
    parts: Sequence[Samples], given: Sequence[str] | None, wanted: str | None, where: str
) -> tuple[Classes | None, tuple[str, ...]]:
    """Returns the classes of the images to train on, None without any, and lines about them.

    Args:
      parts: the samples of all shards, at least one image.
      given: the names of integer labels; None if nothing gives them.
      wanted: the kind of labels that the user names; None for the first one that fits.
      where: the shards, for messages.

    Raises:
      ValueError: if a label has no name among the given ones.
    """
    lines, count = [], sum(map(len, parts))
    kinds = [kind for kind in KINDS if any(kind in part.labels for part in parts)]
    for kind in kinds if wanted is None else [wanted]:
        codes, texts, problem = _merged(parts, kind)
        if (
            not problem
            and kind == ".txt"
            and kind != wanted
            and _IMAGES_A_TEXT * len(texts) > count
        ):
            problem = f"{len(texts):,} different texts for {count:,} images are captions"
        if not problem and all(map(_INTEGER.fullmatch, texts)):
            found = _numbered(codes, texts, kind, given, where)
        elif not problem:
            found = _named(codes, texts, kind)
        else:
            lines.append(f"{kind} files are no labels: {problem} ({_CHANGE})")
            continue
        rest = [other for other in kinds if other != kind]
        unused = f"; not used: {', '.join(rest)} ({_CHANGE})" if rest else ""
        return found, (*lines, f"labels: {_described(found)} beside each image{unused}")
    return None, tuple(lines)


def of_test(parts: Sequence[Samples], train: Classes, where: str) -> tuple[Classes | None, str]:
    """Returns the labels of test images by the classes of train, or None and the reason.

    Raises:
      ValueError: if a test class is not a class of train.
    """
    codes, texts, problem = _merged(parts, train.kind)
    if problem:
        return None, f"has no labels: {problem} in {train.kind}"
    if train.by_number and all(map(_INTEGER.fullmatch, texts)):
        numbers = {text: int(text) for text in texts if int(text) < len(train.names)}
    else:
        known = {name: label for label, name in enumerate(train.names)}
        numbers = {text: known[plain(text)] for text in texts if plain(text) in known}
    if unknown := [text for text in texts if text not in numbers]:
        raise ValueError(
            f"{where} has the classes {cut(unknown)}, not among the {len(train.names)} classes of "
            "train; set --config.data.test_split='' to hold out images of train instead"
        )
    labels = np.array([numbers[text] for text in texts], np.int32)[codes]
    return dataclasses.replace(train, labels=labels), ""


def _merged(parts: Sequence[Samples], kind: str) -> tuple[np.ndarray, list[str], str]:
    """Returns codes int32 [N], the texts that they number, and why these are no labels, or ''."""
    count = sum(map(len, parts))
    codes, table, absent = np.empty(count, np.int32), {}, 0
    most, at = max(_MOST_CLASSES, 2 * count), 0
    for part in parts:
        end = at + len(part)
        if (labels := part.labels.get(kind)) is None:
            absent += len(part)
        else:
            rows = [table.setdefault(text, len(table)) for text in labels.table()]
            # A code of -1 takes the last row.
            codes[at:end] = np.array([*rows, -1], np.int32)[labels.codes]
            absent += int((labels.codes < 0).sum())
        if len(table) > min(most, _MOST_CLASSES):
            return codes, [], f"they have more than {_MOST_CLASSES:,} different values"
        at = end
    problem = f"{absent:,} of the {count:,} images have none" if absent else ""
    return codes, list(table), problem


def _numbered(
    codes: np.ndarray, texts: list[str], kind: str, given: Sequence[str] | None, where: str
) -> Classes:
    numbers = np.array([int(text) for text in texts], np.int64)
    largest, most = int(numbers.max()), max(_MOST_CLASSES, 2 * len(codes))
    if given is not None and largest >= len(given):
        raise ValueError(
            f"{where}: the label {largest} has no name among the {len(given)} of class_names in "
            "shards.json"
        )
    if largest >= most:
        raise ValueError(
            f"{where}: the largest label of the {kind} files is {largest}; allowed: below "
            f"{most} with {len(codes)} images. Number the classes from 0 without gaps"
        )
    names = tuple(given or map(str, range(largest + 1)))
    return Classes(numbers.astype(np.int32)[codes], names, kind, True)


def _named(codes: np.ndarray, texts: list[str], kind: str) -> Classes:
    names = tuple(sorted(set(map(plain, texts))))
    number = {name: label for label, name in enumerate(names)}
    labels = np.array([number[plain(text)] for text in texts], np.int32)
    return Classes(labels[codes], names, kind, False)


def _described(found: Classes) -> str:
    what = "an integer" if found.by_number else "a name"
    ending, _, key = found.kind.partition(" ")
    return f"{what} in {ending}" + (f", key {key!r}," if key else "")
