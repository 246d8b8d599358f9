"""Runs and weights in buckets, read: what is needed of them is copied to the cache folder."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

from moco_jax.buckets import fetching, objects
from moco_jax.buckets.client import Entry
from moco_jax.terminal import progress
from moco_jax.terminal.paths import is_url, mistyped_url, without_slash
from moco_jax.training.integrity import checkpoint_files
from moco_jax.training.remote import copies, layout

_RECORDS = (".json", ".jsonl", ".txt", ".png")  # of a run, besides its checkpoints
_TRIES = 5  # a run may change its files meanwhile
_OLD = 86400.0  # seconds after which nobody reads an older checkpoint any more
_UNUSED = 30 * 86400.0  # seconds after which a copy that was not asked for is removed


def fetched(path: str | os.PathLike) -> pathlib.Path:
    """Returns a local path for a path or URL; that of a URL is a copy of what is there now.

    Of a run, the newest complete checkpoint and its records are copied; one of its checkpoints, a
    folder of weights and a single file are copied whole. What the cache folder has of the same
    version is not copied again. Copies that were not asked for in 30 days are removed.

    Raises:
      FileNotFoundError: if a URL names neither an object nor a folder, or is mistyped.
      OSError: if the cache folder can't be written.
      ValueError: if the bucket can't be read.
    """
    if url := mistyped_url(os.fspath(path)):
        raise FileNotFoundError(f"there is no file or folder {path}; did you mean {url}?")
    if not is_url(os.fspath(path)):
        return pathlib.Path(path).expanduser()
    url = without_slash(os.fspath(path))
    with objects.given_by("the path"):
        place = fetching.cache("read", url)
    # The same name: a checkpoint is named after its step, and a file has its suffix.
    local = place / (url.rpartition("/")[2])
    with (
        objects.given_by("the path"),
        fetching.explained(place),
        _locked(place),
        progress.phase(f"reading {url}"),
    ):
        os.utime(place)  # first: another process does not remove it now
        for left in reversed(range(_TRIES)):
            try:
                _copy(url, place, local)
                break
            except (objects.Changed, FileNotFoundError):
                if not left or not _is_there(url):
                    raise
    _remove_unused(place.parent)
    copies.note(local, url)
    return local


def _is_there(url: str) -> bool:
    return bool(objects.below(url)) or _object(url) is not None


def _copy(url: str, place: pathlib.Path, local: pathlib.Path) -> None:
    """Makes the copy equal to what is there."""
    parent = url.rpartition("/")[0]
    versions = place / "versions.json"
    known = _known(versions)
    if entry := _object(url):
        wanted = {local.name: entry}
    else:
        found = fetching.relative(url, objects.below(url))
        if not found:
            raise FileNotFoundError(f"there is no object and no folder {url}")
        wanted = {f"{local.name}/{name}": entry for name, entry in _needed(found).items()}
    stale = {
        name: entry for name, entry in wanted.items() if not _is_here(place, entry, name, known)
    }
    fetching.download(parent, place, stale)
    versions.write_text(json.dumps({name: entry.version for name, entry in wanted.items()}))
    _remove_other(local, wanted)


def _known(versions: pathlib.Path) -> dict[str, str]:
    """Returns the versions of the files of a copy, {} if a killed process left half of them."""
    try:
        found = json.loads(versions.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _object(url: str) -> Entry | None:
    try:
        return objects.stat(url)
    except FileNotFoundError:
        return None


def _needed(found: dict[str, Entry]) -> dict[str, Entry]:
    """Returns the objects of a folder that are read, by the path from the folder."""
    if f"{layout.RULES.last}" in found and "about/metadata" in found:
        return found  # a checkpoint
    here = {name: entry for name, entry in found.items() if "/" not in name}
    last = f"/{layout.RULES.last}"
    whole = [layout.checkpoint_of(name) for name in found if name.endswith(last)]
    steps = [folder for folder in whole if folder.startswith("checkpoints/")]
    if not steps:
        return {name: x for name, x in here.items() if not name.startswith(".")}
    newest = max(steps, key=lambda folder: int(folder.rpartition("/")[2]))
    records = {name: entry for name, entry in here.items() if name.endswith(_RECORDS)}
    return records | {n: x for n, x in found.items() if layout.checkpoint_of(n) == newest}


def _is_here(place: pathlib.Path, entry: Entry, name: str, known: dict[str, str]) -> bool:
    """Returns whether the copy of an object has its version."""
    file = place / name
    same = bool(entry.version) and known.get(name) == entry.version
    return same and file.is_file() and file.stat().st_size == entry.size


def _remove_other(local: pathlib.Path, wanted: dict[str, Entry]) -> None:
    """Removes what is no longer there: it may be of another run that was at the same URL.

    Checkpoints before the wanted one stay for a day: somebody may be reading them.
    """
    names = {name.removeprefix(f"{local.name}/") for name in wanted}
    groups = {layout.checkpoint_of(name) for name in names} - {""}
    newest = max((int(group.rpartition("/")[2]) for group in groups), default=-1)
    checkpoints = local / "checkpoints"
    for step in checkpoint_files.steps(checkpoints):
        folder = checkpoints / str(step)
        is_old = time.time() - folder.stat().st_mtime > _OLD
        if f"checkpoints/{step}" not in groups and (step > newest or is_old):
            shutil.rmtree(folder, ignore_errors=True)
    for path in [path for path in local.rglob("*") if path.is_file()]:
        name = path.relative_to(local).as_posix()
        if name not in names and layout.checkpoint_of(name) in ("", *groups):
            path.unlink()


def _remove_unused(cache: pathlib.Path) -> None:
    """Removes the copies that nobody asked for in a long time."""
    with contextlib.suppress(OSError):  # another process may remove them too
        for place in cache.iterdir():
            if time.time() - place.stat().st_mtime > _UNUSED:
                shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _locked(place: pathlib.Path) -> Iterator[None]:
    """Waits until no other process changes the copy."""
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "a") as lock:
        with contextlib.suppress(OSError):  # the cache folder may lie on NFS without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
