"""shards.json beside shards: the names of the classes, and what `data.prepare` wrote."""

import json
import os
from collections.abc import Sequence
from typing import Any

from moco_jax.data.sources.class_names import plain
from moco_jax.data.sources.file_types import counted, listed
from moco_jax.data.sources.regular_file import read_file
from moco_jax.data.sources.shards.samples import KINDS

NAME = "shards.json"
WRITER = "moco_jax.data.prepare"  # of shards that were converted
SHARD, NONE = "shard", "none"  # labels: the name of the shard is the class; there are none
_LABELS = (*KINDS, SHARD, NONE)
_MAX_BYTES = 256 << 20


def read(folder: str) -> dict[str, Any]:
    """Returns the contents of shards.json in a folder; {} if there is none.

    Raises:
      ValueError: if the file is damaged, or its class_names or labels can't be used.
    """
    path = os.path.join(folder, NAME)
    try:
        content = json.loads(read_file(path, _MAX_BYTES))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it must hold an object with class_names")
    if content.get("labels") not in (None, *_LABELS):
        raise ValueError(f"{path}: labels must be one of {', '.join(map(repr, _LABELS))}")
    names = content.get("class_names")
    if names is None:
        return content
    if not _are_names(names):
        raise ValueError(f"{path}: class_names must be a list of different texts")
    return content | {"class_names": list(map(plain, names))}


def _are_names(names: Any) -> bool:
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return texts and len(set(map(plain, names))) == len(names)


def is_converted(about: dict[str, Any]) -> bool:
    """Returns whether `data.prepare` wrote the shards, so that their names are unique."""
    return about.get("written_by") == WRITER


def check_complete(about: dict[str, Any], folder: str, found: Sequence[str]) -> None:
    """Raises an error if a conversion is unfinished, or one of its shards is gone.

    Args:
      about: the contents of shards.json.
      folder: that it is in.
      found: the paths of the shards in the folder.

    Raises:
      ValueError: if `data.prepare` was interrupted.
      FileNotFoundError: if a shard is missing.
    """
    if not is_converted(about):
        return
    if about.get("complete") is not True:
        raise ValueError(
            f"the conversion to {folder} was interrupted; run python -m moco_jax.data.prepare "
            "again with the same flags"
        )
    finished = about.get("shards")
    names = list(finished) if isinstance(finished, dict) else []
    known = set(found)
    if missing := [name for name in names if os.path.join(folder, name) not in known]:
        raise FileNotFoundError(
            f"{counted(len(missing), 'shard')} of the {len(names)} of {folder} "
            f"{'is' if len(missing) == 1 else 'are'} missing: {listed(missing)}; copy them again"
        )
