"""Opens Parquet and Arrow files, alone or in folders, as sources.

Folders are those that `datasets` and the Hugging Face Hub make: 'train/0000.parquet',
'data/train-00000-of-00002.parquet', 'train/data-00000-of-00001.arrow'.
"""

import os
import re
from collections.abc import Callable, Sequence

from moco_jax.data.sources import exclusions, split_names
from moco_jax.data.sources.file_types import LeftOut, listed_folders
from moco_jax.data.sources.folders import Keys
from moco_jax.data.sources.source import Opened
from moco_jax.data.sources.tables import arrow, columns, parquet
from moco_jax.data.sources.tables.damage import check_pyarrow, texts
from moco_jax.data.sources.tables.rows import as_source
from moco_jax.data.sources.tables.splits import Part, open_splits
from moco_jax.terminal import progress
from moco_jax.terminal.paths import below
from moco_jax.text import printable

EXTENSIONS = (".parquet", ".arrow")
_READERS = {".parquet": parquet, ".arrow": arrow}
_SHARD = re.compile(r"(.+?)[-_.]\d+-of-\d+([-_.]\w+)?")


def open_file(path: str, keys: Keys) -> Opened:
    """Returns the images of one file; its name is not that of a split.

    Raises:
      ValueError: if the file is damaged, or has no column of images.
    """
    return _open({"": [path]}, path, os.path.dirname(path), keys)


def open_folder(root: str, paths: Sequence[str], left_out: LeftOut, keys: Keys) -> Opened:
    """Returns the images of the Parquet or Arrow files in a folder.

    Args:
      root: the folder.
      paths: relative paths of the files.
      left_out: what else is in the folder.
      keys: of `data`.

    Raises:
      ValueError: as `open_file`, or if it is not clear which files to train on.
    """
    endings = {os.path.splitext(path)[1].lower() for path in paths}
    if len(endings) > 1:
        raise ValueError(
            f"{root} holds .parquet and .arrow files; set --config.data.path to a folder that has "
            "files of one kind"
        )
    kept, notes = exclusions.exclude(sorted(paths), keys.exclude, root)
    return _open(_splits(kept, root), root, root, keys, [*left_out.notes(), *notes])


def is_table(name: str) -> bool:
    """Returns whether a file name is that of a table, not of `datasets`' own indices."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith("indices")


def _splits(paths: Sequence[str], root: str) -> dict[str, list[str]]:
    """Returns {split: relative paths}.

    Raises:
      ValueError: if the files of a split lie in several folders, as those of several data sets do.
    """
    roles = split_names.roles({_stem(path) for path in paths})
    splits: dict[str, list[str]] = {}
    above: dict[str, set[str]] = {}
    for path in paths:
        split, folder = _split(path, roles)
        splits.setdefault(split, []).append(path)
        above.setdefault(split, set()).add(folder)
    for split, folders in above.items():
        if len(folders) > 1 and split:
            raise ValueError(
                f"{root} has {printable(split)} in several folders: {listed_folders(folders)}; set "
                "--config.data.path to one of them"
            )
    return splits


def _stem(path: str) -> str:
    """Returns the name of a file without its ending and the number of its shard."""
    stem = os.path.splitext(os.path.basename(path))[0]
    found = _SHARD.fullmatch(stem)
    return found[1] if found else stem


def _split(path: str, roles: dict[str, str]) -> tuple[str, str]:
    """Returns the split of a file, '' for none, and the folder that the split lies in."""
    stem, parts = _stem(path), path.split("/")[:-1]
    if roles[stem]:
        return stem, "/".join(parts)
    for depth in reversed(range(len(parts))):
        name = parts[depth].removeprefix("partial-")
        if split_names.role(name):
            return name, "/".join(parts[:depth])
    numbered = os.path.splitext(os.path.basename(path))[0] != stem
    if numbered and stem not in ("data", "part"):
        return stem, "/".join(parts)
    return "", "/".join(parts)


def _open(
    splits: dict[str, list[str]], where: str, root: str, keys: Keys, notes: Sequence[str] = ()
) -> Opened:
    """Returns the splits of {name: relative paths}."""
    check_pyarrow(where)

    def opener(split: str) -> Callable[[], Part]:
        paths = [below(root, path) for path in splits[split]]

        def opened() -> Part:
            with texts(where), progress.phase(f"listing {where}", detail=lambda: printable(split)):
                return _part(split, paths, where, keys)

        return opened

    return open_splits({split: opener(split) for split in splits}, where, keys, notes)


def _part(split: str, paths: Sequence[str], where: str, keys: Keys) -> Part:
    """Returns the images of the files of one split, and lines about them."""
    reader = _READERS[os.path.splitext(paths[0])[1].lower()]
    chosen = columns.of_schema(reader.read_schema(paths[0]), keys, paths[0])
    for path in paths[1:]:
        if columns.of_schema(reader.read_schema(path), keys, path) != chosen:
            raise ValueError(
                f"{path} has other columns or classes than {paths[0]}; move it elsewhere, or leave "
                "it out by --config.data.exclude"
            )
    name = split or os.path.basename(where.rstrip("/"))
    rows, warnings = reader.open_rows(paths, chosen, name, where)
    if not len(rows.labels):
        raise ValueError(f"{where} has no rows" + (f" in {printable(split)}" if split else ""))
    label = f"labels: the column {chosen.label}" if chosen.label else "no column of labels"
    read = f"images: the column {chosen.image}; {label}"
    return as_source(rows, f"{where}, {split}" if split else where), (read, *warnings)
