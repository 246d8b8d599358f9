"""Shards whose classes are folders in them, or the shards themselves: 'cat.tar' and 'dog.tar'.

The archive of ImageNet's training images unpacks to a tar for each class, 'n01440764.tar'.
"""

import bisect
import dataclasses
import os
import re
from collections.abc import Sequence

import numpy as np

from moco_jax.data.sources import folders
from moco_jax.data.sources.shards import patterns, splits
from moco_jax.data.sources.shards.images import Images
from moco_jax.data.sources.shards.index_file import Shard
from moco_jax.data.sources.shards.samples import Samples
from moco_jax.data.sources.source import Opened, Source

Candidates = Sequence[tuple[str, list[Shard]]]  # splits that may be the test, and their names
_NUMBER = re.compile(r"\d+")
_WORDNET = re.compile(r"n\d{8}")  # the names of ImageNet's classes


def have_folders(shards: Sequence[Shard]) -> bool:
    """Returns whether some images lie in folders in their shard."""
    return any(_has_folders(shard.samples) for shard in shards)


def are_classes(shards: Sequence[Shard]) -> bool:
    """Returns whether each shard seems to be a class: without labels, folders and numbering."""
    names = [_class_of(shard) for shard in shards]
    return (
        len(set(names)) > 1
        and (not _are_numbered(names) or all(map(_WORDNET.fullmatch, names)))
        and not any(shard.samples.labels for shard in shards)
        and not have_folders(shards)
    )


def _are_numbered(names: Sequence[str]) -> bool:
    """Returns whether some names differ in a number at their end, or all in numbers anywhere."""
    one_name = len({_NUMBER.sub("0", name) for name in names}) == 1
    return one_name or len({splits.unnumbered(name) for name in names}) < len(names)


def by_shards(
    shards: Sequence[Shard], candidates: Candidates, where: str, keys: folders.Keys
) -> Opened:
    """Returns the splits whose classes are the names of the shards.

    A split whose shards have the names of no class is not tested on.
    """
    known = set(map(_class_of, shards))
    tests = [(name, part) for name, part in candidates if known & set(map(_class_of, part))]
    tests = [(name, list(map(_in_folder, part))) for name, part in tests]
    return by_folders(list(map(_in_folder, shards)), tests, where, keys, with_shard=True)


def by_folders(
    shards: Sequence[Shard],
    candidates: Candidates,
    where: str,
    keys: folders.Keys,
    with_shard: bool = False,
) -> Opened:
    """Returns the splits whose classes are the first folders of the names of images.

    The names are texts while the folders are compared. Shards may have several images of one name.

    Args:
      with_shard: whether names begin with that of the shard.
    """
    candidates = candidates[:1]
    every = Images([*shards, *(shard for _, part in candidates for shard in part)])
    of_train = sum(len(shard.samples) for shard in shards)
    prefixes = ("train/", "test/") if candidates else ("", "")
    names = every.names(with_shard)
    paths = [prefixes[row >= of_train] + name for row, name in enumerate(names)]
    rows = np.array(sorted(range(len(paths)), key=paths.__getitem__))
    paths.sort()
    assigned = folders.assign_splits(paths, where, keys)

    def source(split: folders.Split) -> Source:
        chosen = rows[_places(split.paths, paths)]
        read = lambda index: every.read(int(chosen[index]))  # noqa: E731
        title = splits.title(where, split.folder)
        return Source(title, read, names.take(chosen), split.labels, split.class_names)

    train, test = assigned.train, assigned.test
    return Opened(
        source(train),
        test and source(test),
        assigned.notes,
        train_in=train.place,
        test_in=test.place if test else "",
        about_test=assigned.about_test,
    )


def _places(chosen: Sequence[str], paths: Sequence[str]) -> np.ndarray:
    """Returns where texts are in a sorted list, int64 [M]; equal ones follow each other in both."""
    at = np.fromiter((bisect.bisect_left(paths, path) for path in chosen), np.int64, len(chosen))
    begins = np.diff(at, prepend=-1) != 0
    numbers = np.arange(len(at))
    return at + numbers - np.maximum.accumulate(np.where(begins, numbers, 0))


def _has_folders(samples: Samples) -> bool:
    return bool(np.count_nonzero(samples.text == ord("/")) > len(samples))


def _class_of(shard: Shard) -> str:
    return os.path.basename(shard.path)[: -len(patterns.ENDING)]


def _in_folder(shard: Shard) -> Shard:
    """Returns a shard whose images have names with its class as the folder, without '.tar'."""
    samples, ending = shard.samples, len(patterns.ENDING)
    begin = np.cumsum(samples.lengths, dtype=np.int64) - samples.lengths
    begin += len(os.fsencode(os.path.basename(shard.path))) - ending
    kept = np.ones(len(samples.text), bool)
    for position in range(ending):
        kept[begin + position] = False
    lengths = samples.lengths - np.uint32(ending)
    return dataclasses.replace(
        shard, samples=dataclasses.replace(samples, text=samples.text[kept], lengths=lengths)
    )
