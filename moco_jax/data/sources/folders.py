"""Assigns image paths to splits and classes.

Folders and archives follow the same rules, so this module sees only relative paths with slashes.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from moco_jax.data.sources.source import Source

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CLASS_FOLDERS = ("first", "leaf")  # values of data.class_folders
# The folders tried for the test split 'test'; the first one with classes is used.
TEST_FOLDERS = ("test", "val", "validation")


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one split."""

    folder: str  # such as 'train'; '' if there are no splits
    paths: Sequence[str]  # [N], relative and sorted
    labels: np.ndarray | None  # int32 [N], or None without classes
    class_names: tuple[str, ...]  # indexed by label; () without classes

    def source(self, where: str, names: Sequence[str], read: Callable[[int], bytes]) -> Source:
        """Returns the split as a source of images with these names, in a folder or an archive."""
        name = f"{where}, {self.folder}" if self.folder else where
        return Source(name, read, names, self.labels, self.class_names)


def is_hidden(name: str) -> bool:
    """Returns whether a name is not part of the data: '.git', or macOS's '._x' and '__MACOSX'."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Returns whether a file name has one of EXTENSIONS, in upper or lower case."""
    return name.lower().endswith(EXTENSIONS)


def assign_splits(
    paths: Iterable[str], where: str, train_split: str, test_split: str
) -> tuple[Split, Split | None]:
    """Returns the train split and the test split; the latter is None without labelled test images.

    Supported structures: 'train/<class>/*' with 'test|val|validation/<class>/*', '<class>/*', and
    images without classes. A folder that holds everything is not a class and is skipped. Folders
    are classes only if there are two or more of them and no image lies beside them.

    Args:
      paths: relative paths of all images, with slashes; at least one.
      where: the folder or archive, for messages.
      train_split: the folder to train on.
      test_split: the folder to test on; '' for none.

    Raises:
      ValueError: if a requested folder is absent, or a test class is not a train class.
    """
    paths = sorted(paths)
    prefix = _common_folder(paths, {train_split, test_split, *TEST_FOLDERS})
    folders = _by_first_folder(paths, prefix)
    if train_split not in folders:
        _check_no_splits(folders, where, train_split, test_split)
        return _label(paths, prefix, ""), None
    train = _label(folders[train_split], prefix, train_split)
    for name in TEST_FOLDERS if test_split == "test" else (test_split,):
        test = _label_test(folders.get(name, []), prefix, name, train.class_names, where)
        if test is not None:
            return train, test
    if test_split not in ("", "test"):
        raise ValueError(
            f"{where}: data.test_split={test_split!r} must be a folder with labelled images; "
            f"found {_listed(folders)}"
        )
    return train, None


def _common_folder(paths: list[str], split_names: set[str]) -> str:
    """Returns the folders that all sorted paths start with, as 'a/b/' or '', up to a split."""
    prefix = ""
    while True:
        first, slash, _ = paths[0][len(prefix) :].partition("/")
        # A prefix of the first and the last sorted path is a prefix of all.
        if not slash or first in split_names or not paths[-1].startswith(f"{prefix}{first}/"):
            return prefix
        prefix = f"{prefix}{first}/"


def _by_first_folder(paths: list[str], prefix: str) -> dict[str, list[str]]:
    """Returns {first folder below prefix: paths}; the key is '' for paths without a folder."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        first, slash, _ = path[len(prefix) :].partition("/")
        folders.setdefault(first if slash else "", []).append(path)
    return folders


def _label(paths: list[str], prefix: str, folder: str) -> Split:
    """Returns the split in prefix/folder, with classes if all images lie in two or more folders."""
    classes = _by_first_folder(paths, f"{prefix}{folder}/" if folder else prefix)
    if "" in classes or len(classes) < 2:
        return Split(folder, paths, None, ())
    return _with_classes(folder, classes, tuple(sorted(classes)))


def _label_test(
    paths: list[str], prefix: str, folder: str, known: tuple[str, ...], where: str
) -> Split | None:
    """Returns a test split labelled by the train classes; None without classes.

    If train has no classes, the classes of the test split are used.
    """
    if not known:
        split = _label(paths, prefix, folder)
        return split if split.class_names else None
    classes = _by_first_folder(paths, f"{prefix}{folder}/")
    if not classes or "" in classes:
        return None
    unknown = set(classes) - set(known)
    if unknown:
        raise ValueError(
            f"{where}: {prefix}{folder}/ has {_listed(unknown)}, not among the {len(known)} "
            "classes of train; rename the folder, or set data.test_split='' to hold out images of "
            "train instead"
        )
    return _with_classes(folder, classes, known)


def _with_classes(
    folder: str, classes: dict[str, list[str]], class_names: tuple[str, ...]
) -> Split:
    """Returns a split whose labels are indices into class_names."""
    names = sorted(classes)
    number = {name: label for label, name in enumerate(class_names)}
    paths = [path for name in names for path in classes[name]]
    labels = np.array([number[name] for name in names for _ in classes[name]], np.int32)
    return Split(folder, paths, labels, class_names)


def _check_no_splits(folders: dict, where: str, train_split: str, test_split: str) -> None:
    """Raises a ValueError if the folders are splits but none of them is the train split."""
    if train_split != "train":
        raise ValueError(
            f"{where}: data.train_split={train_split!r} must be a folder; found {_listed(folders)}"
        )
    splits = {"train", "test", test_split, *TEST_FOLDERS} - {""}  # '' holds flat images
    if set(folders) <= splits:
        raise ValueError(
            f"{where} has {_listed(folders)} but no {train_split}/; "
            "to train on one of these folders, set data.path to that folder"
        )


def _listed(folders: Iterable[str]) -> str:
    """Returns the first five folder names, for messages."""
    names = sorted(folders)
    shown = ", ".join(f"{name}/" if name else "images without a folder" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
