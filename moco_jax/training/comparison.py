"""What a resumed run must have in common with its checkpoint: kind, config keys and contents."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from moco_jax.terminal import logs
from moco_jax.text import shortened
from moco_jax.training.integrity import checksums
from moco_jax.training.task import Content

# Config keys that say which images a run has. What counts are the images themselves.
IMAGE_PLACES = (
    "data.source",
    "data.path",
    "data.train_split",
    "data.held_out",
    "data.class_folders",
    "data.exclude",
    "data.image_column",
    "data.label_column",
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """The kind of run that writes a checkpoint. All checkpoints of a workdir have one kind.

    A key that ends in "." or "_" means all keys with this prefix.

    Attributes:
      name: written into each checkpoint.
      structure: config keys that shape the state, so that another value cannot continue it.
      results: metrics; a log line that has one of them is an evaluation.
      base: returns the config whose values an older checkpoint has for keys that it lacks.
      places: config keys that say where the run's contents are. Contents are compared by their
        fingerprints instead; checkpoints of earlier versions have none.
      views: config keys that decide the images and the views of each step.
      fixed_images: whether the state has an entry for each training image.
      may_diverge: a part of the state's names; these arrays may have values that are not finite.
    """

    name: str
    structure: tuple[str, ...]
    results: tuple[str, ...]
    base: Callable[[], ConfigDict] | None = None
    places: tuple[str, ...] = ()
    views: tuple[str, ...] = ("seed", "view", "views", "data.")
    fixed_images: bool = False
    may_diverge: str | None = None


def matches(key: str, names: tuple[str, ...]) -> bool:
    """Returns whether a key is one of the names, or begins with one that is a prefix."""
    prefixes = tuple(name for name in names if name.endswith((".", "_")))
    return key in names or key.startswith(prefixes)


def check_kind(folder: pathlib.Path, about: dict[str, Any], kind: str, remedy: str) -> None:
    """Raises a ValueError if a checkpoint's description has another kind."""
    given = about["kind"]
    if given != kind:
        raise ValueError(f"{folder} is a checkpoint of kind {given!r}, not {kind!r}; {remedy}")


def check_structure(
    path: pathlib.Path, changed: Mapping[str, tuple[Any, Any]], structure: tuple[str, ...]
) -> None:
    """Raises a ValueError if a config has other values than a checkpoint for keys of its state."""
    fatal = {key: values for key, values in changed.items() if matches(key, structure)}
    if fatal:
        raise ValueError(
            f"{path} can't be continued: its run has other values, which shape its state:\n"
            f"{table(fatal)}\nGive another --workdir for a new run, or the values of the "
            "checkpoint: drop the flags that change them, or give the config that began it."
        )


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (old, new)} of the keys that differ and may change a run.

    Of `steps` and `epochs` only the one that is the length of the new run counts.
    """
    keys = sorted((old.keys() | new.keys()) - {"name", "wandb", "mlflow", "log_views"})
    changed = {k: (old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)}
    if new.get("steps") is not None:
        changed.pop("epochs", None)
    elif "epochs" in changed:
        changed.pop("steps", None)
    return changed


def table(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Returns a line for each key that changed."""
    return "\n".join(
        f"  {key}: {shortened(repr(old))} in the checkpoint, {shortened(repr(new))} now"
        for key, (old, new) in changed.items()
    )


def shapes(names: Iterable[str], old: dict[str, Any], new: dict[str, Any]) -> str:
    """Returns the first few arrays of two states that differ, with their dtypes and shapes."""
    return checksums.listed(
        f"{name} ({old.get(name, 'none')} in the checkpoint, {new.get(name, 'none')} now)"
        for name in names
    )


def changed_contents(known: Mapping[str, Any], contents: Mapping[str, Content]) -> list[str]:
    """Returns the names of contents that a checkpoint has too, with another fingerprint."""
    both = [name for name in contents if name in known]
    return [name for name in both if known[name]["fingerprint"] != contents[name].fingerprint]


def compare_contents(
    changed: Mapping[str, tuple[str, Content]],
    where: str,
    keys: str,
    kind: Kind,
    may_change: bool,
) -> None:
    """Raises a ValueError for the first changed content that may not change; warns of others.

    Args:
      changed: name -> description in the checkpoint, content now.
      where: the workdir and the step, for messages.
      keys: lines about config keys that say where the contents are, or "".
    """
    for name, (before, now) in changed.items():
        lines = [
            f"the {name} of {where}:",
            f"  in the checkpoint: {before}",
            f"  now: {now.description}",
            *([keys] if keys else []),
        ]
        if may_change and now.may_change:
            logs.warning("%s\nThe run continues on the new ones.", "\n".join(lines))
            continue
        remedies = f"Give another --workdir=..., or the old {name}"
        if kind.fixed_images:
            lines.append("The memory bank has a slot for each of the old images.")
        elif now.may_change:
            remedies += (
                ", or set\n--config.data.may_change=True to continue this run on the new ones"
            )
        raise ValueError("\n".join([*lines, f"{remedies}."]))


def compare_number(
    folder: pathlib.Path, about: dict[str, Any], images: int | None, kind: Kind
) -> None:
    """Compares the number of images with that of a checkpoint without fingerprints.

    Raises:
      ValueError: if it differs and the state has an entry for each image.
    """
    saved = about.get("images")
    # None: a converted checkpoint of another project.
    if saved is None or saved == images:
        return
    if kind.fixed_images:
        raise ValueError(
            f"the memory bank in {folder} has a slot for each of {saved} images, now "
            f"there are {images}; give those images, or another --workdir"
        )
    logs.warning(
        "the checkpoint saw %s images, now there are %s: the run continues with another "
        "order of the images and another length of an epoch",
        saved,
        images,
    )
