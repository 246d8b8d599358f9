"""Which images are for training, which for testing, and what their classes are, from paths.

Folders and archives follow the same rules, so the rules only see relative paths with slashes.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Where the config asks for the split 'test', the first of these that has classes serves.
TEST_FOLDERS = ("test", "val", "validation")


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one split.

    Attributes:
      folder: the folder that held them, such as 'train'; '' where nothing was split.
      paths: [N], as they were given, sorted by name.
      labels: int32 [N], or None where there are no classes.
      class_names: by label; () where there are none.
    """

    folder: str
    paths: Sequence[str]
    labels: np.ndarray | None
    class_names: tuple[str, ...]


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is none of the data: '.git', macOS's '._x', '__MACOSX'."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Returns whether a file name ends as one of EXTENSIONS, in any case."""
    return name.lower().endswith(EXTENSIONS)


def source_name(where: str, split: Split) -> str:
    """Returns what to call a split in messages."""
    return f"{where}, {split.folder}" if split.folder else where


def arrange(
    paths: Iterable[str], where: str, train_split: str, test_split: str
) -> tuple[Split, Split | None]:
    """Returns the train and the test split (None: no labelled one) of images by their paths.

    Layouts: 'train/<class>/*' with 'test|val|validation/<class>/*', '<class>/*', and images
    without classes. A folder that holds everything is skipped: it is no class. Folders are
    classes only where no image lies beside them, and where there are two or more of them.

    Args:
      paths: relative paths of all images, with slashes; at least one.
      where: the folder or archive, for messages.
      train_split: the folder to train on, 'train' unless the user says otherwise.
      test_split: the folder to test on; '' for none.

    Raises:
      ValueError: a folder asked for is absent, or a test class is not among the train classes.
    """
    paths = sorted(paths)
    prefix = _common_folder(paths, {train_split, test_split, *TEST_FOLDERS})
    folders = _by_first_folder(paths, prefix)
    if train_split not in folders:
        _check_no_splits(folders, where, train_split, test_split)
        return _label(paths, prefix, ""), None
    train = _label(folders[train_split], prefix, train_split)
    candidates = TEST_FOLDERS if test_split == "test" else (test_split,)
    for name in candidates:
        test = _label_test(folders.get(name, []), prefix, name, train.class_names, where)
        if test is not None:
            return train, test
    if test_split not in ("", "test"):
        raise ValueError(
            f"{where}: no labelled images in a folder {test_split}/; it has {_listed(folders)}"
        )
    return train, None


def _common_folder(paths: list[str], split_names: set[str]) -> str:
    """Returns the leading folders that all sorted paths share, as 'a/b/' or ''; no split's."""
    prefix = ""
    while True:
        first, slash, _ = paths[0][len(prefix) :].partition("/")
        # What the first and the last of sorted paths share, all share.
        if not slash or first in split_names or not paths[-1].startswith(f"{prefix}{first}/"):
            return prefix
        prefix = f"{prefix}{first}/"


def _by_first_folder(paths: list[str], prefix: str) -> dict[str, list[str]]:
    """Returns the paths by their first folder below prefix; '' for those that lie in none."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        first, slash, _ = path[len(prefix) :].partition("/")
        folders.setdefault(first if slash else "", []).append(path)
    return folders


def _label(paths: list[str], prefix: str, folder: str) -> Split:
    """Returns the images of prefix/folder, with their first folders as classes if they are."""
    classes = _by_first_folder(paths, f"{prefix}{folder}/" if folder else prefix)
    if "" in classes or len(classes) < 2:
        return Split(folder, paths, None, ())
    return _with_classes(folder, classes, tuple(sorted(classes)))


def _label_test(
    paths: list[str], prefix: str, folder: str, known: tuple[str, ...], where: str
) -> Split | None:
    """Returns a test split labelled by train's classes; None where it has no classes.

    Where train has none, the test's own are taken.
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
            f"{where}: {prefix}{folder}/ has {_listed(unknown)}, unknown to the {len(known)} "
            "classes of train; rename it, or set the test split to '' to hold images of train "
            "out instead"
        )
    return _with_classes(folder, classes, known)


def _with_classes(
    folder: str, classes: dict[str, list[str]], class_names: tuple[str, ...]
) -> Split:
    """Returns the classes' images, labelled by the index of their class in class_names."""
    names = sorted(classes)
    number = {name: label for label, name in enumerate(class_names)}
    paths = [path for name in names for path in classes[name]]
    labels = np.repeat([number[name] for name in names], [len(classes[name]) for name in names])
    return Split(folder, paths, labels.astype(np.int32), class_names)


def _check_no_splits(folders: dict, where: str, train_split: str, test_split: str) -> None:
    """Raises a ValueError where folders are splits, but not the one to train on."""
    if train_split != "train":
        raise ValueError(f"{where}: no folder {train_split}/; it has {_listed(folders)}")
    splits = {"train", "test", test_split, *TEST_FOLDERS} - {""}  # '' holds flat images
    if set(folders) <= splits:
        raise ValueError(
            f"{where}: it has {_listed(folders)}, but no {train_split}/ to train on; "
            "to train on one of these give its own path"
        )


def _listed(folders: Iterable[str]) -> str:
    """Returns the first few folder names, for messages."""
    names = sorted(folders)
    shown = ", ".join(f"{name}/" if name else "images in no folder" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
