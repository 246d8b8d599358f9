"""Opens shards as a source with splits and classes.

Labels lie beside the images, see `labels`; without them, folders in the shards are classes, as in
one tar.
"""

import collections
import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from moco_jax.data.sources import exclusions, folders
from moco_jax.data.sources.file_types import LeftOut, counted, listed, no_images
from moco_jax.data.sources.shards import about_file, labels, patterns, splits
from moco_jax.data.sources.shards.images import Images
from moco_jax.data.sources.shards.index_file import Shard, open_shard
from moco_jax.data.sources.source import Opened, Source, take
from moco_jax.terminal import progress
from moco_jax.text import printable

_THREADS = 16  # they read indices, or list shards


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
    opened = _with_label_files(shards, candidates, about, where, name)
    if opened is not None:
        opened = _without_excluded(opened, keys.exclude, where)
    if opened is None:
        inner = (
            keys
            if not name
            else folders.Keys(class_folders=keys.class_folders, exclude=keys.exclude)
        )
        opened = _by_folders(shards, candidates[:1], where, inner)
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


def _with_label_files(
    shards: Sequence[Shard],
    candidates: Sequence[tuple[str, list[Shard]]],
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
    classes, lines = (
        (None, ()) if given == [] else labels.classes(samples, given, about.get("labels"))
    )
    if classes is None and given is None and _has_folders(samples):
        return None
    train = _source(shards, where, name, about, classes)
    test, test_in, why = None, "", []
    for position, (candidate, part) in enumerate(candidates):
        tested = [shard.samples for shard in part]
        if classes is None:  # its own classes are those of the test
            found, problem = labels.classes(tested, given, about.get("labels"))[0], "has no labels"
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
    """Returns the splits without the images that data.exclude names; their classes stay.

    Raises:
      ValueError: if no image to train on is left.
    """
    if not patterns.strip(", "):
        return opened
    kept, count = [], 0
    for source in (opened.train, opened.test):
        rows = exclusions.kept_rows(source.names if source else (), patterns)
        count += len(source) - len(rows) if source else 0
        kept.append(take(source, rows, source.name) if source and len(rows) else None)
    if kept[0] is None:
        raise ValueError(
            f"{where}: data.exclude={patterns!r} leaves out all {len(opened.train)} images"
        )
    warning = "" if count else "warning: "
    line = f"{warning}data.exclude={patterns!r} leaves out {counted(count, 'image')}"
    return dataclasses.replace(opened, train=kept[0], test=kept[1], notes=(*opened.notes, line))


def _source(
    shards: Sequence[Shard], where: str, split: str, about: dict, classes: labels.Classes | None
) -> Source:
    images = Images(shards)
    return Source(
        _title(where, split),
        images.read,
        images.names(with_shard=not about_file.is_converted(about)),
        classes and classes.labels,
        classes.names if classes else (),
    )


def _by_folders(
    shards: Sequence[Shard],
    candidates: Sequence[tuple[str, list[Shard]]],
    where: str,
    keys: folders.Keys,
) -> Opened:
    """Returns the splits whose classes are folders in the shards.

    The paths are lists of texts while the folders are compared, about 200 bytes for an image.
    """
    rows: dict[str, list[int]] = {}
    every = Images([*shards, *(shard for _, part in candidates for shard in part)])
    of_train = sum(len(shard.samples) for shard in shards)
    prefixes = ("train/", "test/") if candidates else ("", "")
    for row, name in enumerate(every.names(with_shard=False)):
        rows.setdefault(prefixes[row >= of_train] + name, []).append(row)
    assigned = folders.assign_splits(rows, where, keys)
    train, test = assigned.train, assigned.test
    return Opened(
        _of_rows(every, rows, train, where),
        test and _of_rows(every, rows, test, where),
        assigned.notes,
        train_in=train.place,
        test_in=test.place if test else "",
        about_test=assigned.about_test,
    )


def _of_rows(every: Images, rows: dict[str, list[int]], split: folders.Split, where: str) -> Source:
    """Returns a split as a source; shards may have several images of one path."""
    counts = [len(rows[path]) for path in split.paths]
    chosen = np.array([row for path in split.paths for row in rows[path]], np.int64)
    names = every.names(with_shard=False).take(chosen)
    labelled = None if split.labels is None else np.repeat(split.labels, counts)
    read = lambda index: every.read(int(chosen[index]))  # noqa: E731
    return Source(_title(where, split.folder), read, names, labelled, split.class_names)


def _has_folders(samples) -> bool:
    return any(np.count_nonzero(part.text == ord("/")) > len(part) for part in samples)


def _title(where: str, split: str) -> str:
    title = os.path.basename(where.rstrip(os.sep))
    return f"{title}, {split}" if split else title


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
