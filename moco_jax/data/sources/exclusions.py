"""Keeps images out of training by the names of their folders.

Folders of data.exclude and masks beside images are left out. Names that look like splits or masks
are warned about, and splits inside of classes are refused.
"""

import collections
import fnmatch
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from moco_jax.data.sources import split_names
from moco_jax.data.sources.file_types import counted, cut, listed, listed_folders
from moco_jax.text import printable


def exclude(paths: Sequence[str], patterns: str, where: str) -> tuple[list[str], list[str]]:
    """Returns the paths without a folder or file that data.exclude names, and lines about it.

    Args:
      paths: relative paths of images.
      patterns: names separated by commas; '*' stands for any characters, as in '*_mask.png'.
      where: the folder or archive, for messages.

    Raises:
      ValueError: if no image is left.
    """
    expression = _expression(patterns)
    if expression is None:
        return list(paths), []
    out = {part: bool(expression.match(_plain(part))) for part in _parts(paths)}
    by_folder = {folder: any(out[part] for part in folder.split("/")) for folder in folders(paths)}
    kept = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if not by_folder[folder] and not expression.match(_plain(name)):
            kept.append(path)
    return kept, [left_out(len(paths), len(kept), patterns, where)]


def kept_rows(names: Iterable[str], patterns: str) -> np.ndarray:
    """Returns the rows int64 of names without a folder or file that data.exclude names.

    The names may be millions: `exclude` has a list of all.
    """
    expression = _expression(patterns)
    out = lambda name: expression and any(expression.match(_plain(x)) for x in name.split("/"))  # noqa: E731
    return np.fromiter((row for row, name in enumerate(names) if not out(name)), np.int64)


def left_out(images: int, kept: int, patterns: str, where: str) -> str:
    """Returns the line about data.exclude.

    Raises:
      ValueError: if no image is kept.
    """
    if not kept:
        raise ValueError(f"{where}: data.exclude={patterns!r} leaves out all {images} images")
    warning = "" if kept < images else "warning: "
    return f"{warning}data.exclude={patterns!r} leaves out {counted(images - kept, 'image')}"


def drop_masks(paths: Sequence[str], keep: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Returns the paths without folders of masks that lie beside images, and lines about them.

    A folder counts as masks if its name says so, and beside it are only folders whose names say
    that they hold images, or the images themselves: 'images/' and 'masks/', VOC's 'JPEGImages/'
    and 'SegmentationClass/'. Folders whose names are in `keep` stay.
    """
    found = folders(paths)
    inside = children(found)
    masks = {
        f"{parent}/{name}" if parent else name
        for parent, names in inside.items()
        for name in _masks_beside_images(names, parent in found) - set(keep)
    }
    if not masks:
        return list(paths), []
    inner = {folder: _first_in(folder, masks) for folder in found}
    kept = [path for path in paths if not inner[path.rpartition("/")[0]]]
    counts: collections.Counter[str] = collections.Counter()
    for path in paths:
        if top := inner[path.rpartition("/")[0]]:
            counts[top.rpartition("/")[2]] += 1
    names = ", ".join(f"{name}/ ({counts[name]} images)" for name in sorted(counts))
    line = f"left out as masks or labels beside images: {names}; a renamed folder is kept"
    return kept, [line]


def mask_warnings(paths: Sequence[str]) -> list[str]:
    """Returns warnings about images to train on that look like masks.

    A name is not enough: masks, labels and copies have the names of the images that they belong to.
    """
    inside = {folder: _mask_folders(folder) for folder in folders(paths)}
    named = [path for path in paths if split_names.masked(_stem(path))]
    if not named and not any(inside.values()):
        return []
    masks = {*named} | {path for path in paths if inside[_folder(path)]}
    images = {_stem(path) for path in paths if path not in masks}
    belongs = lambda path: bool({_stem(path), split_names.masked(_stem(path))} & images)  # noqa: E731
    lines = []
    for name in sorted(set().union(*inside.values())):
        own = [path for path in paths if name in inside[_folder(path)]]
        if not images or any(map(belongs, own)):
            lines.append(
                f"warning: {name}/ ({counted(len(own), 'image')}) looks like masks or labels: "
                f"--config.data.exclude={name} leaves it out"
            )
    named = [path for path in named if belongs(path)]
    if named:
        name = named[0].rpartition("/")[2]
        ending = re.split(r"(?=[_\-. ])", _stem(name))[-1] + "." + name.rpartition(".")[2]
        lines.append(
            f"warning: {counted(len(named), 'image')} of {len(paths)} look like masks, such as "
            f"{listed([name])}: --config.data.exclude='*{ending}' leaves such files out"
        )
    return lines


def check_inner_splits(paths: Sequence[str], where: str) -> None:
    """Raises a ValueError if folders of the images to train on hold splits, as 'cat/test/1.jpg'."""
    for parent, names in sorted(children(folders(paths)).items()):
        roles = split_names.roles(names)
        tests = sorted(name for name in names if roles[name] in split_names.NOT_TRAIN)
        if tests and "train" in roles.values():
            out = ",".join(map(printable, tests))
            raise ValueError(
                f"{where}: {printable(parent)}/ holds the splits {listed_folders(names)}: training "
                f"on all of them would train on test images. Set --config.data.exclude={out} to "
                "leave out test images, or --config.data.train_split='' to train on all"
            )


def class_warnings(class_names: Iterable[str]) -> list[str]:
    """Returns warnings about classes whose names are like those of splits or of all images."""
    names = list(class_names)
    lines = [
        f"warning: the class {printable(name)} looks like a folder of all images: "
        f"--config.data.path=.../{printable(name)} trains on it alone"
        for name in names
        if split_names.holds_images(name)
    ]
    odd = [name for name in names if split_names.looks_like_split(name)]
    if odd:
        some = f"es {cut(odd)} look" if len(odd) > 1 else f" {cut(odd)} looks"
        out = printable(odd[-1])
        lines.append(
            f"warning: the class{some} like a split: --config.data.exclude={out} leaves a folder "
            "out, --config.data.train_split names the one to train on"
        )
    return lines


def folders(paths: Iterable[str]) -> set[str]:
    """Returns the folders that directly hold images; '' for the root."""
    return {path.rpartition("/")[0] for path in paths}


def children(found: Collection[str]) -> dict[str, set[str]]:
    """Returns {folder: names of the folders in it}, for all folders above `found`."""
    inside: dict[str, set[str]] = {}
    for folder in found:
        while folder:
            parent, _, name = folder.rpartition("/")
            names = inside.setdefault(parent, set())
            if name in names:
                break
            names.add(name)
            folder = parent
    return inside


def _masks_beside_images(names: set[str], has_images: bool) -> set[str]:
    masks = {name for name in names if split_names.holds_masks(name)}
    rest = names - masks
    beside = bool(rest) and all(map(split_names.holds_images, rest))
    return masks if beside or (has_images and not rest) else set()


def _first_in(folder: str, masks: set[str]) -> str:
    """Returns the outermost of the folders `masks` that holds a folder, or ''."""
    parts = folder.split("/")
    above = ("/".join(parts[: i + 1]) for i in range(len(parts)))
    return next((path for path in above if path in masks), "")


def _mask_folders(folder: str) -> set[str]:
    """Returns the folders of a path whose names are those of masks."""
    return {part for part in folder.split("/") if split_names.holds_masks(part)}


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _stem(path: str) -> str:
    """Returns the file name without its ending."""
    name = path.rpartition("/")[2]
    return name.rpartition(".")[0] or name


def _parts(paths: Iterable[str]) -> set[str]:
    return {part for folder in folders(paths) for part in folder.split("/")}


def _expression(patterns: str) -> re.Pattern | None:
    """Returns what matches the names in data.exclude, None without any."""
    wanted = [name.strip().strip("/") for name in patterns.split(",") if name.strip().strip("/")]
    if not wanted:
        return None
    return re.compile("|".join(fnmatch.translate(_plain(name)) for name in wanted))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)
