"""When a read that raised nothing is wrong.

A difference is legal where no reader can see it: pixels of formats without a checksum, and
documents that were changed together with their checksum. Every other difference is a fault.
"""

import io
import json
import tarfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.fuzz import mutations
from benchmarks.fuzz.kinds import Mutation

Content = dict[str, Any]


class Read(NamedTuple):
    """A read that raised nothing.

    Attributes:
      made: the mutation.
      before: what the original contains.
      older: what it contains without its latest checkpoint; {} for other kinds.
      after: what was read.
      told: the messages that the original does not give.
    """

    made: Mutation
    before: Content
    older: Content
    after: Content
    told: str


def silent(kind: str, read: Read) -> str:
    """Returns why a read that raised nothing is wrong; "" if it is right or legal."""
    return _JUDGES.get(kind, _any_change)(read)


def difference(before: Content, after: Content) -> str:
    """Returns the parts that differ, "" if none does."""
    lost = [name for name in before if name not in after]
    changed = [name for name in before if name in after and before[name] != after[name]]
    new = [name for name in after if name not in before]
    parts = {"lost": lost, "changed": changed, "new": new}
    return "; ".join(f"{what} {', '.join(names[:2])}" for what, names in parts.items() if names)


def _any_change(read: Read) -> str:
    """Every change of bytes must be seen."""
    return "" if read.made.planned or read.told else difference(read.before, read.after)


def _legal(read: Read) -> str:
    """No change can be seen: these formats have no checksums, or their readers ignore them."""
    return ""


def _weights(read: Read) -> str:
    """Weights of other projects have no checksum, but numbers that are not finite are seen."""
    return "" if read.after["finite"] or read.told else "weights that are not finite"


def _tar_contents(read: Read) -> str:
    """A header has a checksum, and an archive has an end; its contents have neither."""
    before, after = read.made.before, read.made.after
    found = difference(read.before, read.after)
    if read.made.planned or read.told or not found:
        return ""
    if before.startswith(after):
        return f"cut off after {len(after)} of {len(before)} bytes: {found}"
    if len(after) != len(before):
        return ""
    for at in mutations.tar_headers(before):
        block = after[at : at + mutations.BLOCK]
        if block != before[at : at + mutations.BLOCK]:
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                return f"damaged header at {at}: {found}"
    return ""


def _zip(read: Read) -> str:
    """Names have no checksum; each image that is read must be one of the original."""
    digests = lambda content: {x[1] for name, x in content.items() if " image " in name}  # noqa: E731
    new = digests(read.after) - digests(read.before)
    return f"{len(new)} images have other pixels" if new else ""


def _other_images(read: Read) -> str:
    """Images of files that were not touched stay, unless a message counts what is left out."""
    touched = read.made.file.name
    lost = [name for name in read.before if name not in read.after and touched not in name]
    return "" if read.told or not lost else f"lost {', '.join(lost[:2])}"


def _tfds(read: Read) -> str:
    """Records have checksums; the documents and the names of the classes beside them have none."""
    return "" if read.made.file.suffix in (".json", ".txt") else _any_change(read)


def _npz_images(read: Read) -> str:
    """Labels must be those that NumPy reads: none may wrap."""
    if not read.made.planned or read.told:
        return _any_change(read)
    with np.load(io.BytesIO(read.made.after), allow_pickle=False) as opened:
        for key, split in (("labels", "train"), ("test_labels", "test")):
            got = [x[0] for name, x in read.after.items() if name.startswith(f"{split} image")]
            if key in opened.files and None not in got and got != opened[key].tolist():
                return f"{key} are {opened[key].tolist()[:3]}, read as {got[:3]}"
    return ""


def _checkpoint_arrays(read: Read) -> str:
    """The state is the latest one, or an older one and a message names what is damaged."""
    arrays = {name: x for name, x in read.after.items() if name[:1] in "[."}
    if all(read.before.get(name) == x for name, x in arrays.items()) and arrays:
        return _any_change(read)
    if all(read.older.get(name) == x for name, x in arrays.items()) and arrays:
        return "" if read.told else "falls back to an older checkpoint without a message"
    return f"arrays of no checkpoint: {difference(read.before, read.after)}"


def _log_lines(read: Read) -> str:
    """Every line that is whole is kept, or moved to the dropped lines."""
    for line in set(read.made.before.splitlines()) & set(read.made.after.splitlines()):
        where = "kept" if json.loads(line)["step"] <= 12 else "dropped"
        if line.decode() not in read.after[where]:
            return f"the line {line.decode()} is not {where}"
    return ""


_JUDGES: dict[str, Callable[[Read], str]] = {
    "tar": _tar_contents,
    "shards": _tar_contents,
    "zip": _zip,
    "image": _legal,
    "folder": _other_images,
    "image_tables": _legal,
    "image_lists": _legal,
    "tfds": _tfds,
    "images_npz": _npz_images,
    "safetensors": _weights,
    "torch": _weights,
    "checkpoint": _checkpoint_arrays,
    "resume": _checkpoint_arrays,
    "about": _checkpoint_arrays,
    "resume_about": _checkpoint_arrays,
    "metrics": _log_lines,
    "overrides": _legal,
    "config_file": _legal,
}
