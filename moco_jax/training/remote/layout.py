"""The files of a run, as the copies of a run see them."""

import re
from collections.abc import Iterable

from moco_jax.buckets import fetching
from moco_jax.buckets.mirror import Rules
from moco_jax.training import compiled

STARTS = "starts.jsonl"  # every start adds a line, before it changes anything else
_CHECKPOINT = re.compile(r"((?:.*/)?checkpoints/(?:0|[1-9][0-9]*))/")
_LAST = "_CHECKPOINT_METADATA"  # Orbax writes it to every checkpoint
_EVERY = 10.0  # seconds between two copies of metrics


def starts(names: Iterable[str]) -> set[str]:
    """Returns the files with the starts of runs: a command may run twice, in folders of its own."""
    return {name for name in names if name.rpartition("/")[2] == STARTS}


def checkpoint_of(name: str) -> str:
    """Returns the folder of the checkpoint that a file belongs to, "" for other files."""
    found = _CHECKPOINT.match(name)
    return found[1] if found else ""


def _is_skipped(name: str) -> bool:
    """Returns whether a file is not copied: it is unfinished, or of this machine only.

    Programs that are executed are not read from a bucket, which others may write.
    """
    parts = name.split("/")
    if fetching.is_unfinished(parts[-1]):
        return True
    if checkpoint_of(name):
        return False
    unfinished = parts[-1].endswith(".unfinished") or ".orbax-checkpoint-tmp" in name
    return unfinished or compiled.FOLDER in parts[:-1] or any(p.startswith(".") for p in parts)


RULES = Rules(skipped=_is_skipped, group=checkpoint_of, last=_LAST, mark=STARTS, every=_EVERY)
