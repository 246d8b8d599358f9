"""Assigns image paths to splits and classes.

Folders and archives follow the same rules, so this module sees only relative paths with slashes.
What it guesses is returned as lines for the user.
"""

import dataclasses
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from moco_jax.data.sources import exclusions, split_names
from moco_jax.data.sources.file_types import counted, cut, listed, listed_folders
from moco_jax.data.sources.source import Source
from moco_jax.text import printable

CLASS_FOLDERS = ("first", "leaf")  # values of data.class_folders
# tiny-imagenet has the classes of val/images/ in this file of val/.
ANNOTATIONS = "val_annotations.txt"
_NO_CLASSES = "has no class folders"


@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys of `data` that say how folders and tables are read, see moco_jax/config.py."""

    train_split: str = "train"  # '' if the data have no splits
    test_split: str = "test"
    class_folders: str = "first"
    exclude: str = ""
    image_column: str = ""  # of a table; '' to find it
    label_column: str = ""
    max_bad_fraction: float = 0.01  # of the rows of a list


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one split."""

    folder: str  # such as 'train'; '' if there are no splits
    paths: Sequence[str]  # [N], relative and sorted
    labels: np.ndarray | None  # int32 [N], or None without classes
    class_names: tuple[str, ...]  # indexed by label; () without classes
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The folder for messages, such as 'train/'."""
        return f"{printable(self.folder)}/" if self.folder else ""

    def source(self, where: str, names: Sequence[str], read: Callable[[int], bytes]) -> Source:
        """Returns the split as a source of images with these names, in a folder or an archive."""
        name = f"{where}, {self.folder}" if self.folder else where
        return Source(name, read, names, self.labels, self.class_names)


@dataclasses.dataclass(frozen=True)
class Assigned:
    """The splits of a data set."""

    train: Split
    test: Split | None  # None without labelled test images
    about_test: str  # why these are the test images, for the user; '' if nothing was guessed
    notes: tuple[str, ...]  # lines for the user


def assign_splits(
    paths: Iterable[str],
    where: str,
    keys: Keys = Keys(),  # noqa: B008  (frozen)
    read_text: Callable[[str], str | None] = lambda path: None,
) -> Assigned:
    """Returns the train split and the test split; the latter is None without labelled test images.

    Supported structures: 'train/<class>/*' with 'test/<class>/*' or 'val/<class>/*' (or other names
    of splits, see `split_names`), '<class>/*', and images without classes. A folder that holds
    everything is not a class and is skipped. Folders are classes only if there are two or more of
    them and no image lies beside them. Folders of masks beside images are left out.

    Args:
      paths: relative paths of all images, with slashes; at least one.
      where: the folder or archive, for messages.
      keys: how the user wants the folders to be read.
      read_text: returns the text of a file by its relative path, or None if it is absent.

    Raises:
      ValueError: if a requested folder is absent, a test class is not a train class, or a guess
        would train on test images.
    """
    if keys.class_folders not in CLASS_FOLDERS:
        raise ValueError(
            f"data.class_folders={keys.class_folders!r} must be one of {', '.join(CLASS_FOLDERS)}"
        )
    paths, notes = exclusions.exclude(sorted(paths), keys.exclude, where)
    if not keys.train_split:
        if keys.test_split not in ("", "test"):
            raise ValueError(
                f"data.test_split={keys.test_split!r} needs data.train_split, which is '': all "
                "folders are classes"
            )
        train = _label(paths, _common_depth(paths, lambda name: False), "", keys)
        return Assigned(train, None, "", (*notes, *train.notes))
    explicit = {keys.train_split, keys.test_split}
    paths, masks = exclusions.drop_masks(paths, explicit)
    depth = _common_depth(paths, lambda name: name in explicit or bool(split_names.role(name)))
    top = _by_folder(paths, depth)[0]
    roles = split_names.roles(top)
    name = _train_folder(top, roles, where, keys)
    train = _label(top[name] if name else paths, depth + bool(name), name, keys)
    exclusions.check_inner_splits(train.paths, where)
    if name:
        _check_no_class(train, top, roles, where, keys)
        test, about = _test_split(top, roles, depth, train, where, keys, read_text)
        notes += _unused(top, {name, test.folder if test else name})
    else:
        test, about = None, ""
    notes += [*masks, *train.notes, *(test.notes if test else ())]
    notes += exclusions.class_warnings(train.class_names)
    notes += exclusions.mask_warnings(train.paths)
    return Assigned(train, test, about, tuple(notes))


def _common_depth(paths: list[str], is_split: Callable[[str], bool]) -> int:
    """Returns how many folders all sorted paths start with, up to a split."""
    # A prefix of the first and the last sorted path is a prefix of all.
    first, last = paths[0].split("/")[:-1], paths[-1].split("/")[:-1]
    depth = 0
    for a, b in zip(first, last, strict=False):
        if a != b or is_split(a):
            break
        depth += 1
    return depth


def _by_folder(
    paths: Sequence[str], depth: int, leaf: bool = False
) -> tuple[dict[str, list[str]], list[str]]:
    """Groups paths by the folder at a depth; '' is the key of paths without one.

    With `leaf`, the key is all folders from that depth on. File systems write accents in two ways
    (NFC, NFD); names that differ only in that are one folder.

    Returns:
      {folder in NFC: paths}, and the folders that are spelled in both ways.
    """
    folders: dict[str, list[str]] = {}
    spellings: dict[str, str] = {}
    twice: set[str] = set()
    for path in paths:
        parts = path.split("/") if leaf else path.split("/", depth + 1)
        name = "/".join(parts[depth:-1]) if leaf else parts[depth] if len(parts) > depth + 1 else ""
        if not name.isascii():
            plain = unicodedata.normalize("NFC", name)
            if spellings.setdefault(plain, name) != name:
                twice.add(plain)
            name = plain
        folders.setdefault(name, []).append(path)
    return folders, sorted(twice)


def _train_folder(
    top: Mapping[str, Sequence[str]], roles: Mapping[str, str], where: str, keys: Keys
) -> str:
    """Returns the folder to train on, or '' if the folders are no splits."""
    found = _find(top, roles, keys.train_split, where, "train_split")
    if found:
        return found
    if keys.train_split != "train":
        raise ValueError(
            f"{where}: data.train_split={keys.train_split!r} must be a folder; "
            f"found {listed_folders(top)}"
        )
    tests = sorted(name for name in top if roles[name] in split_names.NOT_TRAIN)
    if not tests:
        return ""
    others = sorted(set(top) - set(tests))
    if not others:
        raise ValueError(
            f"{where} has {listed_folders(top)} but no train/; "
            "to train on one of these folders, set --config.data.path to that folder"
        )
    raise ValueError(
        f"{where} has {listed_folders(tests)} beside {listed_folders(others)} and no train/: "
        "training on all of them would train on test images. Set --config.data.train_split to the "
        "folder to train on, "
        f"--config.data.exclude={','.join(map(printable, tests))} to leave out test images, or "
        "--config.data.train_split='' if all folders are classes"
    )


def _check_no_class(
    train: Split,
    top: Mapping[str, Sequence[str]],
    roles: Mapping[str, str],
    where: str,
    keys: Keys,
) -> None:
    """Raises a ValueError if the train folder may be a class, as in 'bus/', 'car/', 'train/'."""
    others = sorted(name for name in top if name and name != train.folder and not roles[name])
    tests = any(roles[name] in split_names.NOT_TRAIN for name in top)
    asked = keys.train_split != "train" or keys.test_split not in ("", "test")
    if others and train.labels is None and not tests and not asked:
        raise ValueError(
            f"{where} has {train.place} beside {listed_folders(others)}, so {train.place} is "
            "a split or a class: set --config.data.train_split='' if all folders are classes, or "
            f"--config.data.exclude={','.join(map(printable, others[:5]))} to train on it alone"
        )


def _find(
    top: Mapping[str, Sequence[str]], roles: Mapping[str, str], wanted: str, where: str, key: str
) -> str:
    """Returns the folder of a split: of that name, else of that role; '' if there is none."""
    wanted = unicodedata.normalize("NFC", wanted)
    return split_names.find(
        top,
        roles,
        wanted,
        lambda found: (
            f"{where} has several folders that look like {wanted}: {listed_folders(found)}; "
            f"set --config.data.{key} to one of them"
        ),
    )


def _label(paths: Sequence[str], depth: int, folder: str, keys: Keys) -> Split:
    """Returns a split, with classes if all images lie in two or more folders."""
    leaf = keys.class_folders == "leaf"
    classes, twice = _by_folder(paths, depth)
    while len(classes) == 1 and "" not in classes:
        depth += 1
        classes, twice = _by_folder(paths, depth)
    if leaf:
        classes, twice = _by_folder(paths, depth, leaf=True)
    if "" in classes or len(classes) < 2:
        return Split(folder, paths, None, (), notes=_why_no_classes(classes))
    notes = [
        f"{printable(name)} is spelled in two Unicode forms (NFC and NFD): one class"
        for name in twice
    ]
    inner = len({unicodedata.normalize("NFC", name) for name in exclusions.folders(paths)})
    if not leaf and inner > len(classes):
        notes.append(
            f"classes are the first of nested folders; {inner} folders hold images: "
            "--config.data.class_folders=leaf"
        )
    names = tuple(sorted(classes))
    return dataclasses.replace(_with_classes(folder, classes, names), notes=tuple(notes))


def _why_no_classes(classes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    folders = sorted(set(classes) - {""})
    if not folders:
        return ()
    loose = classes[""]
    return (
        f"warning: no classes: {counted(len(loose), 'image')}, such as {listed(loose[:1])}, "
        f"beside the {counted(len(folders), 'folder')} {cut(folders)}: move them into a folder, "
        "or leave them out by --config.data.exclude",
    )


def _test_split(top, roles, depth, train: Split, where: str, keys: Keys, read_text):
    """Returns the test split, or None, and why."""
    wanted = keys.test_split
    if not wanted:
        return None, ""
    if wanted == "test":
        ranked = {"test": 0, "val": 1}
        rest = [name for name in top if roles[name] in ranked and name != train.folder]
        names = sorted(rest, key=lambda n: (ranked[roles[n]], n not in split_names.STANDARD, n))
    else:
        names = [name] if (name := _find(top, roles, wanted, where, "test_split")) else []
    problems = []
    for number, name in enumerate(names):
        test, problem = _label_test(top[name], depth + 1, name, train, where, keys, read_text)
        if test is not None:
            left = [f"{printable(other)}/" for other in names[number + 1 :]]
            problems += [f"not {', '.join(left)}"] if left else []
            return test, "; ".join(problems)
        problems.append(f"{printable(name)}/ {problem}")
    if wanted != "test":
        raise ValueError(
            f"{where}: data.test_split={wanted!r} must be a folder with labelled images; "
            f"found {listed_folders(top)}" + (f" ({'; '.join(problems)})" if problems else "")
        )
    return None, "; ".join(problems)


def _label_test(
    paths: Sequence[str], depth: int, folder: str, train: Split, where: str, keys: Keys, read_text
) -> tuple[Split | None, str]:
    """Returns a test split labelled by the train classes, or None and the reason.

    If train has no classes, the classes of the test split are used.
    """
    known = train.class_names
    if not known:
        split = _label(paths, depth, folder, keys)
        return (split, "") if split.class_names else (None, _NO_CLASSES)
    leaf = keys.class_folders == "leaf"
    classes, twice = _by_folder(paths, depth, leaf)
    while len(classes) == 1 and not set(classes) & {"", *known}:
        if leaf:
            break
        depth += 1
        classes, twice = _by_folder(paths, depth)
    if set(classes) == {""} and (text := read_text(_above(paths[0], depth, folder))) is not None:
        return _annotated(paths, text, folder, known)
    if "" in classes:
        return None, _NO_CLASSES if len(classes) == 1 else "has images beside its class folders"
    unknown = set(classes) - set(known)
    if unknown:
        raise ValueError(
            f"{where}: {printable(folder)}/ has {listed_folders(unknown)}, not among the "
            f"{len(known)} classes of train; rename the folder, or set "
            "--config.data.test_split='' to hold out images of train instead"
        )
    notes = tuple(
        f"{printable(folder)}/{printable(name)} is spelled in two Unicode forms: one class"
        for name in twice
    )
    return dataclasses.replace(_with_classes(folder, classes, known), notes=notes), ""


def _above(path: str, depth: int, folder: str) -> str:
    """Returns the path of the annotations of a split, from the path of one of its images."""
    parts = path.split("/")[:depth]
    return "/".join([*parts[: parts.index(folder) + 1], ANNOTATIONS] if folder in parts else [])


def _annotated(
    paths: Sequence[str], text: str, folder: str, known: tuple[str, ...]
) -> tuple[Split | None, str]:
    """Returns a split labelled by lines 'file name<tab>class<tab>...', or None and the reason."""
    classes = dict(line.split("\t")[:2] for line in text.splitlines() if line.count("\t"))
    number = {name: label for label, name in enumerate(known)}
    labels = [number.get(classes.get(path.rpartition("/")[2], ""), -1) for path in paths]
    if -1 in labels:
        name = printable(paths[labels.index(-1)].rpartition("/")[2])
        return None, f"{_NO_CLASSES}, and {ANNOTATIONS} has no class of train for {name}"
    note = f"the classes of {printable(folder)}/ are those of {ANNOTATIONS}"
    return Split(folder, paths, np.array(labels, np.int32), known, notes=(note,)), ""


def _with_classes(
    folder: str, classes: Mapping[str, list[str]], class_names: tuple[str, ...]
) -> Split:
    """Returns a split whose labels are indices into class_names."""
    names = sorted(classes)
    number = {name: label for label, name in enumerate(class_names)}
    paths = [path for name in names for path in classes[name]]
    labels = np.array([number[name] for name in names for _ in classes[name]], np.int32)
    return Split(folder, paths, labels, class_names)


def _unused(top: Mapping[str, Sequence[str]], used: set[str]) -> list[str]:
    """Returns a line about the images that are in no split."""
    rest = [
        f"{printable(name)}/ ({counted(len(paths), 'image')})"
        if name
        else f"{counted(len(paths), 'image')} beside the folders"
        for name, paths in sorted(top.items())
        if name not in used
    ]
    more = f" and {len(rest) - 10} more folders" if len(rest) > 10 else ""
    return [f"not used: {', '.join(rest[:10])}{more}"] if rest else []
