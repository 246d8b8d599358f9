"""Opens shards as a source with splits and classes.

Labels lie beside the images, see `labels`; without them, folders in the shards are classes, as in
one tar, or each shard is a class, see `folder_classes`.
"""

import collections
import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from moco_jax.data.sources import exclusions, folders
from moco_jax.data.sources.class_names import renumbered
from moco_jax.data.sources.file_types import LeftOut, listed, no_images
from moco_jax.data.sources.shards import about_file, folder_classes, labels, patterns, splits
from moco_jax.data.sources.shards.images import Images
from moco_jax.data.sources.shards.index_file import Shard, open_shard
from moco_jax.data.sources.source import Opened, Source, take
from moco_jax.terminal import progress
from moco_jax.text import printable

_THREADS = 16  # they read indices, or list shards
_GUESS = (
    "the name of each shard is the class of its images: "
    f'{{"labels": "{about_file.NONE}"}} in {about_file.NAME} beside the shards means no classes'
)


def open_pattern(path: str, keys: folders.Keys) -> Opened:
    """Returns the images of the shards that a pattern names; see `patterns.expanded`.

    Raises:
      FileNotFoundError: if a shard is missing.
      ValueError: if a shard is damaged, the shards hold no images, or their splits are ambiguous.
    """
    shards = patterns.expanded(path)
    return _open(shards, patterns.common_folder(shards), path, keys)


def open_folder(root: str, shards: Sequence[str], keys: folders.Keys) -> Opened:
    """Returns the images of the shards in a folder; raises as `open_pattern`."""
    return _open(shards, root, root, keys)


def _open(paths: Sequence[str], root: str, where: str, keys: folders.Keys) -> Opened:
    about = about_file.read(root)
    if root == where:
        about_file.check_complete(about, root, paths)
    found = splits.groups(paths, root)
    name, own, tests, notes = splits.assign(found, where, keys)
    shards = _listed(own, where)
    candidates = [(test, _listed(found[test], where)) for test in tests]
    opened = _with_classes(shards, candidates, about, where, name, keys)
    used = [
        *shards,
        *(shard for test, part in candidates if test == opened.test_in for shard in part),
    ]
    return Opened(
        opened.train,
        opened.test,
        (*_gaps(paths), *notes, *_left_out(used), *opened.notes),
        train_in=opened.train_in,
        test_in=opened.test_in,
        about_test=opened.about_test,
    )


def _listed(paths: Sequence[str], where: str) -> list[Shard]:
    """Returns the shards with their samples, from the index of each.

    Raises:
      ValueError: if a shard is damaged, or there are no images.
    """
    with ThreadPoolExecutor(min(_THREADS, len(paths))) as pool:
        opened = pool.map(open_shard, paths)
        shards = list(progress.items(opened, len(paths), f"listing {where}", unit="shards"))
    if not any(len(shard.samples) for shard in shards):
        left_out = LeftOut()
        for shard in shards:
            left_out.endings.update(shard.samples.endings)
        raise ValueError(no_images(f"the shards {where}", left_out))
    return shards


def _with_classes(
    shards: Sequence[Shard],
    candidates: folder_classes.Candidates,
    about: dict,
    where: str,
    name: str,
    keys: folders.Keys,
) -> Opened:
    """Returns the splits with the classes that files beside the images, shards or folders give."""
    # The shards of a split are known: their folders have no more splits.
    inner = folders.Keys(class_folders=keys.class_folders, exclude=keys.exclude) if name else keys
    guess = not {"labels", "class_names"} & set(about) and folder_classes.are_classes(shards)
    if guess or about.get("labels") == about_file.SHARD:
        opened = folder_classes.by_shards(shards, candidates, where, inner)
        lines = (_GUESS,) if guess else ()
        return dataclasses.replace(opened, notes=(*lines, *opened.notes))
    if opened := _with_label_files(shards, candidates, about, where, name):
        return _without_excluded(opened, keys.exclude, where)
    return folder_classes.by_folders(shards, candidates, where, inner)


def _with_label_files(
    shards: Sequence[Shard],
    candidates: folder_classes.Candidates,
    about: dict,
    where: str,
    name: str,
) -> Opened | None:
    """Returns the splits with the labels beside the images.

    Returns None if folders in the shards are the classes. The test split is the first candidate
    with labels.
    """
    given = about.get("class_names")
    samples = [shard.samples for shard in shards]
    classes, lines = None, ()
    if about.get("labels") == about_file.NONE:
        given, candidates = [], []
    if given != []:
        classes, lines = labels.classes(samples, given, about.get("labels"), where)
    if classes is None and given is None and folder_classes.have_folders(shards):
        return None
    train = _source(shards, where, name, about, classes)
    test, test_in, why = None, "", []
    for position, (candidate, part) in enumerate(candidates):
        tested = [shard.samples for shard in part]
        if classes is None:  # its own classes are those of the test
            found, problem = (
                labels.classes(tested, given, about.get("labels"), where)[0],
                "has no labels",
            )
        else:
            found, problem = labels.of_test(tested, classes, f"{where}, {candidate}")
        if found is not None:
            test, test_in = _source(part, where, candidate, about, found), candidate
            rest = [printable(other) for other, _ in candidates[position + 1 :]]
            why += [f"not {', '.join(rest)}"] if rest else []
            break
        why.append(f"{printable(candidate)} {problem}")
    return Opened(train, test, lines, train_in=name, test_in=test_in, about_test="; ".join(why))


def _without_excluded(opened: Opened, patterns: str, where: str) -> Opened:
    """Returns the splits without the images that data.exclude names.

    A class that loses all its images is no class any more, as of folders.

    Raises:
      ValueError: if no image to train on is left, or a test image has a class that train lost.
    """
    if not patterns.strip(", "):
        return opened
    kept, images = [], 0
    for source in (opened.train, opened.test):
        rows = exclusions.kept_rows(source.names if source else (), patterns)
        kept.append(take(source, rows, source.name) if source and len(rows) else None)
        images += len(source) if source else 0
    if kept[0] is None:
        raise ValueError(
            f"{where}: data.exclude={patterns!r} leaves out all {len(opened.train)} images"
        )
    line = exclusions.left_out(images, sum(len(x) for x in kept if x), patterns, where)
    train, test = _without_lost_classes(opened, kept[0], kept[1], where)
    return dataclasses.replace(opened, train=train, test=test, notes=(*opened.notes, line))


def _without_lost_classes(
    opened: Opened, train: Source, test: Source | None, where: str
) -> tuple[Source, Source | None]:
    """Returns what is left of the splits, without the classes of which no image is left."""
    if opened.train.labels is not None:
        names = _left_classes(opened.train, train)
        return renumbered(train, names, where), test and renumbered(test, names, where)
    if opened.test is not None and test is not None:  # the classes are those of the test images
        return train, renumbered(test, _left_classes(opened.test, test), where)
    return train, test


def _left_classes(whole: Source, rest: Source) -> list[str]:
    """Returns the class names without those that lost all their images."""
    assert whole.labels is not None and rest.labels is not None
    lost = np.setdiff1d(whole.labels, rest.labels)
    return [name for label, name in enumerate(whole.class_names) if label not in lost]


def _source(
    shards: Sequence[Shard], where: str, split: str, about: dict, classes: labels.Classes | None
) -> Source:
    images = Images(shards)
    return Source(
        splits.title(where, split),
        images.read,
        images.names(with_shard=not about_file.is_converted(about)),
        classes and classes.labels,
        classes.names if classes else (),
    )


def _gaps(paths: Sequence[str]) -> list[str]:
    missing = patterns.holes(paths)
    if not missing:
        return []
    return [f"warning: the numbers of the shards have gaps: there is no {listed(missing)}"]


def _left_out(shards: Sequence[Shard]) -> list[str]:
    """Returns lines about what is no image or label, and warnings about shards."""
    counts: collections.Counter[str] = collections.Counter()
    names: dict[str, list[str]] = {}
    files = LeftOut()
    warnings, unsaved = [], 0
    for shard in shards:
        base = os.path.basename(shard.path)
        for what, (count, first) in shard.samples.left_out.items():
            counts[what] += count
            known = names.setdefault(what, [])
            known += [f"{base}/{name}" for name in first[: 5 - len(known)]]
        files.endings.update(shard.samples.endings)
        warnings += [f"{printable(base)}: {text}" for text in shard.samples.warnings]
        unsaved += not shard.saved
    lines = [f"warning: {text}" for text in warnings[:5]]
    if len(warnings) > 5:
        lines.append(f"warning: {len(warnings) - 5} more shards have such ends")
    if unsaved:
        lines.append(
            f"warning: the index of {unsaved} shards can't be written beside them or into the "
            "cache folder: each start lists them again (XDG_CACHE_HOME names another folder)"
        )
    lines += files.notes()
    for what, count in sorted(counts.items()):
        more = f" and {count - len(names[what])} more" if count > len(names[what]) else ""
        lines.append(f"left out: {count} x {what}: {listed(names[what])}{more}")
    return lines
