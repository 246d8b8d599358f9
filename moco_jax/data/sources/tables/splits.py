"""Chooses the splits of a table to train and to test on.

Names of splits are those of `split_names`, as for folders.
"""

from collections.abc import Callable, Mapping, Sequence

from moco_jax.data.sources import split_names
from moco_jax.data.sources.class_names import renumbered
from moco_jax.data.sources.file_types import counted, cut, listed
from moco_jax.data.sources.folders import Keys
from moco_jax.data.sources.source import Opened, Source, only_labelled
from moco_jax.text import printable

Part = tuple[Source, Sequence[str]]  # the images of a split, and lines about them


def open_splits(
    splits: Mapping[str, Callable[[], Part]], where: str, keys: Keys, notes: Sequence[str] = ()
) -> Opened:
    """Returns the train split, and the test split labelled by the classes of train.

    Args:
      splits: {name: opens it}; '' is the name of rows that are in no split.
      where: the file or folder, for messages.
      keys: which splits the user wants.
      notes: lines for the user.

    Raises:
      ValueError: if a split does not exist, a guess would train on test images, or a test class is
        not a train class.
    """
    name = _train(list(splits), where, keys)
    train, about_train = splits[name]()
    test_in, test, about_test, problems = _test(splits, name, train, where, keys)
    rest = [_shown(other) for other in splits if other not in (name, test_in)]
    unused = [f"not used: {', '.join(rest)}"] if rest else []
    return Opened(
        train,
        test,
        tuple(dict.fromkeys((*notes, *about_train, *about_test, *unused))),
        train_in=_shown(name) if len(splits) > 1 or name else "",
        test_in="" if test_in is None else _shown(test_in),
        about_test="; ".join(problems),
    )


def _test(
    splits: Mapping[str, Callable[[], Part]], train_in: str, train: Source, where: str, keys: Keys
) -> tuple[str | None, Source | None, Sequence[str], list[str]]:
    """Returns the test split, its images, lines about them, and why others are not the test."""
    problems: list[str] = []
    for name in _tests(list(splits), train_in, where, keys):
        found, lines = splits[name]()
        if found.labels is None:
            problems.append(f"{_shown(name)} has no labels")
            continue
        test = only_labelled(found)
        if count := len(found) - len(test):
            what = counted(count, "image")
            lines = (*lines, f"left out: {what} of {_shown(name)} without a label")
        if train.class_names:
            test = renumbered(test, train.class_names, where)
        return name, test, lines, problems
    if keys.test_split not in ("", "test"):
        raise ValueError(
            f"{where}: data.test_split={keys.test_split!r} must be a split with labels; found "
            f"{_all(splits)}" + (f" ({'; '.join(problems)})" if problems else "")
        )
    return None, None, (), problems


def _train(names: Sequence[str], where: str, keys: Keys) -> str:
    """Returns the split to train on."""
    wanted = keys.train_split
    if not wanted:
        if len(names) == 1:
            return names[0]
        raise ValueError(
            f"{where} has the splits {_all(names)}: set --config.data.train_split to one of them"
        )
    if found := _find(names, wanted, where, "train_split"):
        return found
    if wanted != "train":
        raise ValueError(
            f"{where}: data.train_split={wanted!r} must be a split; found {_all(names)}"
        )
    roles = split_names.roles(names)
    tests = [name for name in names if roles[name] in split_names.NOT_TRAIN]
    if len(names) == 1 and not tests:
        return names[0]
    why = ": a guess would train on test images" if tests else ""
    raise ValueError(
        f"{where} has {_all(names)} but no train{why}; set --config.data.train_split to the split "
        "to train on"
    )


def _tests(names: Sequence[str], train: str, where: str, keys: Keys) -> list[str]:
    """Returns the splits that may be the test, the best first."""
    wanted = keys.test_split
    if not wanted:
        return []
    if wanted != "test":
        found = _find(names, wanted, where, "test_split")
        return [found] if found else []
    roles, ranked = split_names.roles(names), {"test": 0, "val": 1}
    rest = [name for name in names if roles[name] in ranked and name != train]
    return sorted(rest, key=lambda n: (ranked[roles[n]], n not in split_names.STANDARD, n))


def _find(names: Sequence[str], wanted: str, where: str, key: str) -> str:
    """Returns the split of that name, else of that role; '' if there is none."""
    return split_names.find(
        names,
        split_names.roles(names),
        wanted,
        lambda found: (
            f"{where} has several splits that look like {wanted}: {listed(found)}; set "
            f"--config.data.{key} to one of them"
        ),
    )


def _all(names) -> str:
    return cut([_shown(name) for name in sorted(names)], 200)


def _shown(name: str) -> str:
    return printable(name) or "rows without a split"
