"""Finds splits among shards by their names: 'a-train-000.tar', or folders 'train/' and 'val/'."""

import os
import re
from collections.abc import Sequence

from moco_jax.data.sources import split_names
from moco_jax.data.sources.file_types import counted, listed
from moco_jax.data.sources.folders import Keys
from moco_jax.text import printable

_NUMBERING = re.compile(r"[-_.]*(\d+([-_]of[-_]\d+)?)?$", re.IGNORECASE)


def groups(shards: Sequence[str], root: str) -> dict[str, list[str]]:
    """Returns {name: shards}: the name is the folder below root, or the file name unnumbered."""
    found: dict[str, list[str]] = {}
    for shard in shards:
        inner = os.path.relpath(shard, root) if root else shard
        folder, name = os.path.split(inner)
        stem = unnumbered(name[: -len(".tar")] if name.lower().endswith(".tar") else name)
        top = folder.split(os.sep)[0]
        found.setdefault(top if top and split_names.role(top) else stem, []).append(shard)
    return found


def unnumbered(stem: str) -> str:
    """Returns the name of a shard without the number at its end: 'a' for 'a-000-of-256'."""
    return _NUMBERING.sub("", stem)


def title(where: str, split: str) -> str:
    """Returns the name of a split for messages."""
    place = os.path.basename(where.rstrip(os.sep))
    return f"{place}, {split}" if split else place


def assign(
    found: dict[str, list[str]], where: str, keys: Keys
) -> tuple[str, list[str], list[str], tuple[str, ...]]:
    """Returns the name of the shards to train on, those shards, names to test on, and lines.

    Raises:
      ValueError: if a requested split is absent, or a guess would train on test images.
    """
    names = sorted(found)
    every = [shard for shards in found.values() for shard in shards]
    if not keys.train_split or (len(names) == 1 and keys.train_split == "train"):
        if keys.test_split not in ("", "test"):
            raise ValueError(_no_split(where, keys.test_split, "test_split", names))
        return "", every, [], ()
    roles = split_names.roles(names)
    train = _one(names, roles, keys.train_split, "train_split", where)
    if not train:
        tests = [name for name in names if roles[name] in split_names.NOT_TRAIN]
        if keys.train_split != "train":
            raise ValueError(_no_split(where, keys.train_split, "train_split", names))
        if tests:
            raise ValueError(
                f"{where} has shards named {_quoted(tests)} beside {_quoted(set(names) - {*tests})}"
                " and none named train: training on all of them would train on test images. Set "
                "--config.data.train_split to the name of the shards to train on, or "
                "--config.data.train_split='' to train on all"
            )
        return "", every, [], (f"shards of {counted(len(names), 'name')}: {_quoted(names)}",)
    tests = _tests(names, roles, train, keys, where)
    unused = [name for name in names if name != train and name not in tests]
    lines = (f"not used: shards named {_quoted(unused)}",) if unused else ()
    return train, found[train], tests, lines


def _tests(
    names: list[str], roles: dict[str, str], train: str, keys: Keys, where: str
) -> list[str]:
    """Returns the names of shards that may be the test split, the best first."""
    if not keys.test_split:
        return []
    if keys.test_split != "test":
        name = _one(names, roles, keys.test_split, "test_split", where)
        if not name:
            raise ValueError(_no_split(where, keys.test_split, "test_split", names))
        return [name]
    ranked = {"test": 0, "val": 1}
    rest = [name for name in names if roles[name] in ranked and name != train]
    return sorted(rest, key=lambda name: (ranked[roles[name]], name))


def _one(names: list[str], roles: dict[str, str], wanted: str, key: str, where: str) -> str:
    """Returns the name of a split: that name, else the one of that role; '' if there is none."""
    if wanted in names:
        return wanted
    own = split_names.role(wanted) if wanted in split_names.STANDARD else ""
    found = [name for name in names if own and roles[name] == own]
    if len(found) > 1:
        raise ValueError(
            f"{where} has shards of several names that look like {wanted}: {_quoted(found)}; set "
            f"--config.data.{key} to one of them"
        )
    return found[0] if found else ""


def _no_split(where: str, wanted: str, key: str, names: list[str]) -> str:
    return f"{where}: --config.data.{key}={wanted} must be a name of shards; found {_quoted(names)}"


def _quoted(names) -> str:
    return listed(repr(printable(name)) for name in sorted(names))
