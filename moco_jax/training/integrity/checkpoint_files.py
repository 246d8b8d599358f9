"""Checkpoints on disk: which ones are there, whether they are whole, and their arrays on the host.

A checkpoint is a folder `checkpoints/<step>` with two parts: `state`, the arrays, and `about`, a
JSON file that describes them. `about` has a checksum of each array and one of itself.
"""

import json
import os
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np
import tensorstore

from moco_jax.terminal import logs
from moco_jax.training.flat_config import with_current_keys
from moco_jax.training.integrity import checksums

_REASON = 300  # characters of an error that are shown
# 'DATA_LOSS: Error opening "zarr" driver: Error reading ...: ' before the cause.
_CHAIN = re.compile(
    r"(?:[A-Z_]+: )?Error (?:opening|reading|writing) .*?(?:: (?!.*: (?!expected=))|: (?=\[))"
)
_CACHE = 100_000_000  # bytes of TensorStore's cache: the arrays of a checkpoint share files


class Damaged(ValueError):
    """A checkpoint is not as it was saved."""


class NoneWhole(ValueError):
    """There are checkpoints, and none of them is whole."""


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, the newest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((int(path.name) for path in found if _is_step(path.name)), reverse=True)


def _is_step(name: str) -> bool:
    """Returns whether a run writes a folder of this name: a step without zeros before it."""
    return name.isascii() and name.isdigit() and name == str(int(name))


def sealed(about: dict[str, Any]) -> dict[str, Any]:
    """Returns a description with its own checksum."""
    return about | {"crc": _crc(about)}


def _crc(about: dict[str, Any]) -> int:
    content = {key: value for key, value in about.items() if key != "crc"}
    # Twice: JSON turns tuples to lists and keys to texts.
    content = json.loads(json.dumps(content))
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def read_about(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the description of a checkpoint of any version, with the keys of this version.

    Raises:
      Damaged: if it can't be read, or is not as it was saved.
    """
    file = folder / "about" / "metadata"
    try:
        about = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise Damaged("about/metadata is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        _raise_if_refused(file, error)
        raise Damaged(f"about/metadata can't be read: {reason(error)}") from error
    if not isinstance(about, dict):
        raise Damaged(f"about/metadata is not an object but {reason(about)}")
    # Checkpoints of earlier versions have none of them.
    if {"crc", "arrays", "contents", "since"} & about.keys() and about.get("crc") != _crc(about):
        raise Damaged("about/metadata has another checksum than when it was saved")
    # "pictures" is the name before 0.2.0.
    about = {"images" if key == "pictures" else key: value for key, value in about.items()}
    wrong = [
        key
        for key, kind in (("kind", str), ("recipe", dict), ("step", int))
        if not isinstance(about.get(key), kind)
    ]
    if wrong:
        raise Damaged(f"about/metadata has no {' and no '.join(wrong)}")
    if _is_step(folder.name) and about["step"] != int(folder.name):
        raise Damaged(f"it is the checkpoint of step {about['step']}")
    return about | {"recipe": with_current_keys(about["recipe"])}


def newest_recipe(checkpoints: pathlib.Path, kind: str) -> dict[str, Any]:
    """Returns the recipe of the newest checkpoint whose description is whole; {} without one.

    A checkpoint of another kind has no recipe for this kind of run.
    """
    for step in steps(checkpoints):
        try:
            about = read_about(checkpoints / str(step))
        except Damaged:
            continue
        return about["recipe"] if about["kind"] == kind else {}
    return {}


def read_arrays(
    folder: pathlib.Path, about: dict[str, Any], parts: Sequence[str] | None = None
) -> Any:
    """Returns arrays of a checkpoint as nested dicts on the host, compared with their checksums.

    They are read by TensorStore: Orbax leaves tasks behind when an array can't be read, and these
    print tracebacks later.

    Args:
      folder: of one checkpoint.
      about: its description. One of an earlier version has no checksums.
      parts: of the state, such as "params"; default all.

    Raises:
      Damaged: if arrays can't be read or are not as they were saved.
      PermissionError: if this user may not read them.
    """
    saved = about.get("arrays")
    try:
        names = _names(folder / "state") if saved is None else list(saved)
        wanted = [name for name in names if parts is None or name.partition("/")[0] in parts]
        arrays = _read(folder / "state", wanted, saved)
    except (MemoryError, Damaged):
        raise
    except Exception as error:  # TensorStore raises several types
        _raise_if_refused(folder, error)
        raise Damaged(f"its arrays can't be read: {reason(error)}") from error
    if saved is not None:
        found = checksums.summarize_host(arrays).arrays
        wrong = checksums.unequal({name: saved[name] for name in wanted}, found)
        if wrong:
            raise Damaged(f"arrays are not as they were saved: {checksums.listed(wrong)}")
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def _names(state: pathlib.Path) -> list[str]:
    """Returns the names of the arrays that Orbax lists."""
    tree = json.loads((state / "_METADATA").read_bytes())["tree_metadata"].values()
    full = [entry for entry in tree if not entry["value_metadata"].get("skip_deserialize")]
    return ["/".join(str(key["key"]) for key in entry["key_metadata"]) for entry in full]


def _read(
    state: pathlib.Path, names: Sequence[str], saved: dict[str, Any] | None
) -> dict[str, np.ndarray]:
    """Returns arrays by name, as Orbax stores them."""
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE}})
    stores = []
    for name in names:
        # TensorStore refuses a path with "..".
        base = {"driver": "file", "path": f"{os.path.realpath(state)}/"}
        path = name.replace("/", ".") + "/"
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": base, "path": path},
            "fill_missing_data_reads": False,
        }
        stores.append(tensorstore.open(spec, context=context, read=True, open=True))
    opened = [store.result() for store in stores]
    for name, store in zip(names, opened, strict=True):
        if saved is not None and list(store.shape) != saved[name][1]:
            raise Damaged(f"{name} has the shape {list(store.shape)}, not {saved[name][1]}")
    reading = [store.read() for store in opened]
    return {name: array.result() for name, array in zip(names, reading, strict=True)}


class Whole(NamedTuple):
    """The newest whole checkpoint of a folder.

    Attributes:
      step: its step.
      about: its description.
      arrays: its state, as `read_arrays` returns it.
      damaged: {step: what is wrong} of newer checkpoints.
    """

    step: int
    about: dict[str, Any]
    arrays: Any
    damaged: dict[int, str]


def newest_whole(folder: pathlib.Path) -> Whole | None:
    """Returns the newest whole checkpoint; None without any checkpoint.

    Raises:
      NoneWhole: if there are checkpoints and all are damaged; the message says what is wrong.
      PermissionError: if this user may not read them.
    """
    damaged: dict[int, str] = {}
    for step in steps(folder):
        try:
            about = read_about(folder / str(step))
            return Whole(step, about, read_arrays(folder / str(step), about), damaged)
        except Damaged as error:
            damaged[step] = str(error)
    if damaged:
        raise NoneWhole(none_whole(folder, damaged))
    return None


def none_whole(folder: pathlib.Path, damaged: dict[int, str], other: str = "--workdir") -> str:
    """Returns a message about checkpoints that are all damaged; `other` is what else to give."""
    lines = [f"  {folder / str(step)}: {why}" for step, why in damaged.items()]
    return (
        f"none of the checkpoints in {folder} is a whole checkpoint of moco_jax:\n"
        + "\n".join(lines)
        + f"\nRestore one of them from a copy, or give another {other}."
    )


def warn_of_damaged(folder: pathlib.Path, damaged: dict[int, str], step: int) -> None:
    """Warns for each damaged checkpoint in place of which an older one, of this step, is read."""
    for newer, why in damaged.items():
        logs.warning(
            "the checkpoint %s is damaged: %s. Step %d is read instead.",
            folder / str(newer),
            why,
            step,
        )


def set_aside(folder: pathlib.Path, damaged: dict[int, str]) -> None:
    """Renames damaged checkpoints to `damaged-<step>`, and warns. Nothing is deleted."""
    for step, why in damaged.items():
        path = folder / f"damaged-{step}"
        number = 1
        while path.exists():
            number += 1
            path = folder / f"damaged-{step}-{number}"
        (folder / str(step)).rename(path)
        logs.warning(
            "the checkpoint %s is damaged: %s. It is now %s; an older one is used.",
            folder / str(step),
            why,
            path,
        )


def _raise_if_refused(path: pathlib.Path, error: Exception) -> None:
    """Raises a PermissionError for files that may be whole but that this user may not read."""
    if isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error):
        raise PermissionError(f"{path} can't be read: {reason(error)}") from error


def reason(error: Any) -> str:
    """Returns an error in one short line; of TensorStore's chains of errors the last one."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.split(r" \[(?:tensorstore_spec|source locations)=", text)[0]
    if _CHAIN.match(text):
        text = _CHAIN.sub("", text).partition("; at ")[0]
    if len(text) > _REASON:  # the reason stands at the end, after paths
        text = f"{text[: _REASON // 2]} ... {text[-_REASON // 2 :]}"
    return text
