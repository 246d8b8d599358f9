"""Opens lists of images as sources: paths, and labels and splits if there are any.

Paths are relative to the folder of the list, or absolute. A list is the user's own file, so it may
name files anywhere, as a link in a folder may.
"""

import array
import collections
import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np

from moco_jax.data.sources import exclusions, split_names
from moco_jax.data.sources.class_names import sorted_classes
from moco_jax.data.sources.file_types import cut, is_image
from moco_jax.data.sources.folders import Keys
from moco_jax.data.sources.regular_file import read_file
from moco_jax.data.sources.source import NO_LABEL, Opened, Source
from moco_jax.data.sources.tables import columns, list_file
from moco_jax.data.sources.tables.rows import TEXT, Rows, as_source
from moco_jax.data.sources.tables.splits import Part, open_splits
from moco_jax.terminal import progress
from moco_jax.terminal.paths import is_url

_CHUNK = 1 << 14
_PROBED = 20  # rows whose cells say what a column without a name has
_NAMED = 3  # bad rows in a message


def open_list(path: str, keys: Keys) -> Opened:
    """Returns the images of a list.

    Raises:
      ValueError: if the list is damaged, has no column of paths, or more than max_bad_fraction of
        its rows can't be read.
      OSError: if the list can't be read.
    """
    return open_lists([(path, "")], path, os.path.dirname(path), keys)


def open_lists(lists: Sequence[tuple[str, str]], where: str, root: str, keys: Keys) -> Opened:
    """Returns the images of several lists as one data set.

    Args:
      lists: paths of lists, and the split of rows that have none.
      where: for messages.
      root: the folder that names of images begin with.
      keys: of `data`.
    """
    table = _Table()
    notes: list[str] = []
    with progress.phase(f"reading {where}", detail=lambda: f"{table.count:,} rows"):
        for path, split in lists:
            notes += _read(table, path, split, os.path.relpath(os.path.dirname(path), root), keys)
    table.close()
    if not table.count:
        raise ValueError(f"the list {where} has no rows")
    kept, excluded = _kept(table, keys, where)
    labels, class_names = sorted_classes(table.labels, list(table.label_texts))
    splits, split_names_found = _splits(table)
    urls = any(is_url(f"{folder}//") for folder in table.folder_texts)

    def opener(number: int, name: str) -> Callable[[], Part]:
        def opened() -> Part:
            chosen = np.flatnonzero(kept & (splits == number))
            used = np.unique(labels[chosen][labels[chosen] != NO_LABEL])
            new = np.full(len(class_names) + 1, NO_LABEL, np.int32)
            new[used] = np.arange(len(used))
            names = tuple(class_names[label] for label in used)
            paths = table.paths if len(chosen) == table.count else table.paths[chosen]
            source = _source(paths, new[labels[chosen]], names, root, name, where)
            return dataclasses.replace(source, remote=urls and _have_urls(paths)), ()

        return opened

    openers = {
        name: opener(number, name)
        for number, name in enumerate(split_names_found)
        if (kept & (splits == number)).any()
    }
    return open_splits(openers, where, keys, [*notes, *excluded])


def _splits(table: "_Table") -> tuple[np.ndarray, list[str]]:
    """Returns the splits int32 [N] and their names.

    Without splits in the list, the first folders of the paths are splits if some of them are test
    splits and others are train splits: to train on all would train on test images.
    """
    if list(table.split_texts) == [""]:
        roles = split_names.roles(table.folder_texts)
        if "train" in roles.values() and split_names.NOT_TRAIN & set(roles.values()):
            names = list(dict.fromkeys(name if roles[name] else "" for name in table.folder_texts))
            number = [names.index(name if roles[name] else "") for name in table.folder_texts]
            return np.array(number, np.int32)[np.frombuffer(table.folders, np.int32)], names
    return np.frombuffer(table.splits, np.int32), list(table.split_texts)


def _source(
    paths: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    root: str,
    split: str,
    where: str,
) -> Source:
    start = os.path.join(root, "")

    def names(rows: np.ndarray) -> list[str]:
        found = paths[rows].tolist()
        return [path if path.startswith("/") or is_url(path) else start + path for path in found]

    read = lambda row: read_file(names(np.array([row]))[0])  # noqa: E731
    rows = Rows(read, names, paths, labels, class_names)
    return as_source(rows, f"{where}, {split}" if split else where)


def _have_urls(paths: np.ndarray) -> bool:
    return bool((np.strings.find(paths, "://") > 0).any())


def _numbers() -> dict[str, int]:
    """Returns a dict that numbers texts from 0 in the order in which they are looked up."""
    found: collections.defaultdict[str, int] = collections.defaultdict()
    found.default_factory = found.__len__
    return found


class _Table:
    """The rows so far, without a Python object for each."""

    def __init__(self):
        self.labels_found, self.splits = array.array("i"), array.array("i")
        self.folders = array.array("i")  # the first one of each path
        self.label_texts, self.split_texts, self.folder_texts = _numbers(), _numbers(), _numbers()
        self.paths, self.labels = np.zeros(0, TEXT), np.zeros(0, np.int32)
        self._parts: list[np.ndarray] = []
        self._last: tuple[list[str], list[str], list[str]] = ([], [], [])  # paths, labels, splits

    @property
    def count(self) -> int:
        return len(self.splits) + len(self._last[0])

    def add(self, *columns: Sequence[str]) -> None:
        """Adds rows: paths, labels and splits; '' for no label."""
        for kept, column in zip(self._last, columns, strict=True):
            kept.extend(column)
        if len(self._last[0]) >= _CHUNK:
            self._pack()

    def _pack(self) -> None:
        """Puts the last rows into arrays."""
        paths, labels, splits = self._last
        self._last = ([], [], [])
        number = self.label_texts.__getitem__
        self.labels_found.extend([number(label) if label else NO_LABEL for label in labels])
        self.splits.extend(map(self.split_texts.__getitem__, splits))
        folders = [path.partition("/")[0] if "/" in path else "" for path in paths]
        self.folders.extend(map(self.folder_texts.__getitem__, folders))
        self._parts.append(np.array(paths, TEXT))

    def close(self) -> None:
        """Makes `paths` and `labels` of all rows."""
        self._pack()
        self.paths, self._parts = np.concatenate(self._parts), []
        self.labels = np.frombuffer(self.labels_found, np.int32)


def _read(table: _Table, path: str, split: str, folder: str, keys: Keys) -> list[str]:
    """Adds the rows of a list; returns lines about it.

    Args:
      table: gets the rows.
      path: of the list.
      split: of rows that have none.
      folder: of the list, relative to the root of the data set.
      keys: of `data`.
    """
    names, has_header, blocks = list_file.read(path)
    columns_found = _columns(path, names, has_header, keys)
    path_at, label_at, split_at = (names.index(x) if x else None for x in columns_found)
    assert path_at is not None
    bad: list[str] = []
    count = bad_count = 0
    for block in blocks:
        block = _with_paths(block, path_at)
        paths = block.columns[path_at]
        count += len(paths) + len(block.bad)
        bad_count += len(block.bad)
        bad += [f"line {line}: {why}" for line, why in block.bad[: _NAMED - len(bad)]]
        empty = [""] * len(paths)
        labels = empty if label_at is None else block.columns[label_at]
        splits = empty if split_at is None else block.columns[split_at]
        splits = [own or split for own in splits] if split else splits
        if folder != "." or "./" in "".join(paths):
            paths = [_inside(path, folder) for path in paths]
        table.add(paths, labels, splits)
    if not bad_count:
        return []
    what = f"{bad_count} of the {count} rows of {path} can't be read"
    shown = "; ".join(bad) + ("; ..." if bad_count > len(bad) else "")
    if bad_count > max(1, keys.max_bad_fraction * count):
        raise ValueError(
            f"{what}, more than data.max_bad_fraction={keys.max_bad_fraction} allows ({shown})"
        )
    return [f"warning: {what} ({shown})"]


def _with_paths(block: list_file.Block, path_at: int) -> list_file.Block:
    """Returns the rows that have a path; the others are bad."""
    paths = block.columns[path_at]
    if all(paths) and "\0" not in "".join(paths):
        return block
    kept: list[int] = []
    bad = list(block.bad)
    for row, path in enumerate(paths):
        if path and "\0" not in path:
            kept.append(row)
        else:
            why = "a NUL character in the path" if path else "no path"
            bad.append((block.lines[row], why))
    columns = [[column[row] for row in kept] for column in block.columns]
    return list_file.Block([block.lines[row] for row in kept], columns, sorted(bad))


def _inside(path: str, folder: str) -> str:
    """Returns a path relative to the root, of one that is relative to a folder in it."""
    if folder != "." and not is_url(path):
        path = os.path.normpath(os.path.join(folder, path))
    return path.removeprefix("./")


def _columns(path: str, names: list[str], has_header: bool, keys: Keys) -> tuple[str, str, str]:
    """Returns the columns of paths, labels ('' for none) and splits ('' for none)."""
    where = f"the list {path}"
    if keys.image_column:
        image = columns.named(names, keys.image_column, "image_column", "paths", where)
    elif has_header:
        image = columns.pick(names, columns.PATHS, "image_column", "path", where)
    else:
        image = ""
    cells = _probe(path, names) if not has_header or not image else {}
    if not image:
        possible = [name for name in names if _are_images(cells[name]) or len(names) == 1]
        if len(possible) != 1:
            raise ValueError(
                f"{where}: no column is known to have the paths of images; set "
                f"--config.data.image_column to one of {cut(names)}"
            )
        image = possible[0]
    rest = [name for name in names if name != image]
    if has_header:
        split = next((name for name in rest if name.lower() in columns.SPLITS), "")
        known = [name for name in rest if name != split]
        if not keys.label_column:
            return image, columns.pick(known, columns.LABELS, "label_column", "label", where), split
    else:
        roles = lambda name: bool(cells[name]) and all(map(split_names.role, cells[name]))  # noqa: E731
        split = next((name for name in rest if len(rest) > 1 and roles(name)), "")
    rest = [name for name in rest if name != split]
    if keys.label_column:
        label = columns.named(rest, keys.label_column, "label_column", "labels", where)
        return image, label, split
    if len(rest) > 1:
        raise ValueError(
            f"{where}: several columns may be the label: {cut(rest)}; set "
            "--config.data.label_column to one of them"
        )
    return image, rest[0] if rest else "", split


def _are_images(cells: Sequence[str]) -> bool:
    return 2 * sum(map(is_image, cells)) > len(cells)


def _probe(path: str, names: list[str]) -> dict[str, Sequence[str]]:
    """Returns the cells of the first rows, by column."""
    _, _, blocks = list_file.read(path)
    first = next((block.columns for block in blocks if block.lines), [[] for _ in names])
    return {name: column[:_PROBED] for name, column in zip(names, first, strict=True)}


def _kept(table: _Table, keys: Keys, where: str) -> tuple[np.ndarray, list[str]]:
    """Returns which rows data.exclude leaves, bool [N], and lines about it."""
    if not keys.exclude.strip(" ,/"):
        return np.ones(table.count, bool), []
    rows = exclusions.kept_rows(table.paths, keys.exclude)
    kept = np.zeros(table.count, bool)
    kept[rows] = True
    return kept, [exclusions.left_out(table.count, len(rows), keys.exclude, where)]
