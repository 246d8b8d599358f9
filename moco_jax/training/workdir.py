"""The folder of a run: its lock and the records of how the run was made."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time
import uuid
from collections.abc import Iterator
from typing import IO, Any

import jax
from ml_collections import ConfigDict

from moco_jax.parallel import cluster
from moco_jax.terminal import logs
from moco_jax.terminal.paths import is_url
from moco_jax.training import compiled
from moco_jax.training.outputs import appending
from moco_jax.training.remote import copies
from moco_jax.training.remote.layout import STARTS

_LOCK, _MARK = ".lock", ".start"
_OURS = ("config.json", "metrics.jsonl", "parameters.txt", "checkpoints", "tensorboard")
_APPEARS_WITHIN = 20  # seconds until a shared folder shows a file of another machine
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Makes the folder and locks it for the block, so that no other run uses it.

    Raises:
      ValueError: if it can't be written, has files of another program, another run is using it, or
        the processes see different folders.
    """
    if is_url(str(path)):
        raise ValueError(
            f"the workdir {path} must be a local or mounted folder here; "
            "python -m moco_jax.main --workdir takes URLs"
        )
    folder, locks = pathlib.Path(path).expanduser().absolute(), []
    own = copies.is_own(folder)  # then only process 0 has the folder

    def open_first() -> str:
        locks.append(open_workdir(folder))
        mark = uuid.uuid4().hex
        # Not in the lock, which stays open: a mounted bucket shows closed files only.
        appending.write_whole(folder / _MARK, mark.encode())
        return mark

    try:
        mark = cluster.on_first(open_first)
        if not own:
            cluster.check_all(f"the workdir {folder}", lambda: _seen(folder, mark))
        # All processes must find the same programs, or none.
        alike = jax.process_count() == 1 or not own
        with compiled.kept(folder) if alike else contextlib.nullcontext():
            yield folder
    finally:
        for lock in locks:
            lock.close()


def _seen(folder: pathlib.Path, mark: str) -> str:
    """Returns a problem if the mark of process 0 does not appear in the folder, else ""."""
    deadline = time.monotonic() + _APPEARS_WITHIN
    while True:
        try:
            if (folder / _MARK).read_text() == mark:
                return ""
        except OSError:
            pass
        if jax.process_count() == 1 or time.monotonic() > deadline:
            return "is not the folder that process 0 sees; it must be shared by all machines"
        time.sleep(0.2)


def open_workdir(folder: pathlib.Path) -> IO:
    """Makes the folder and returns its lock, held until the process ends or closes it.

    Raises:
      ValueError: if it can't be written, has files of another program, or another process is using
        it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / _LOCK, "a")
    except OSError as error:
        raise ValueError(f"the workdir {folder} can't be written: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ValueError(
            f"another process is running in {folder}; wait for it, or give another --workdir"
        ) from None
    except OSError as error:  # Lustre and NFS may be mounted without locks
        logs.warning("no lock in %s (%s): start one run at a time there", folder, error)
    foreign = [name for name in _OURS if _holds_something(folder / name)]
    if foreign and not (folder / STARTS).exists():
        lock.close()
        raise ValueError(
            f"{folder} has {', '.join(foreign)} but no {STARTS}, so no run of moco_jax wrote "
            "them; give another --workdir"
        )
    return lock


def _holds_something(path: pathlib.Path) -> bool:
    """Returns whether there is a file, or a folder that is not empty.

    A start that fails on its data leaves empty folders; the corrected command may use them.
    """
    return any(path.iterdir()) if path.is_dir() else path.exists()


def record(folder: pathlib.Path, config: ConfigDict, start_step: int) -> None:
    """Writes the resolved config; adds this start's command and versions to `starts.jsonl`.

    Raises:
      ValueError: if a file can't be written; the message names it.
    """
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "step": start_step,
        "python": platform.python_version(),
        "devices": [str(d.device_kind) for d in jax.devices()],
        "processes": jax.process_count(),
        "versions": {name: _version(name) for name in _LIBRARIES},
    }
    appending.append_line(folder / STARTS, json.dumps(start))  # first: it marks the others as ours
    content = config.to_json_best_effort(indent=2) + "\n"
    appending.write_whole(folder / "config.json", content.encode())


def _version(name: str) -> Any:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
