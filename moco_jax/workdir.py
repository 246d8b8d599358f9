"""The folder of a run: who writes to it, and what tells how the run was made."""

import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time
from typing import IO, Any

import jax
from ml_collections import ConfigDict

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def open_workdir(path: str | os.PathLike) -> tuple[pathlib.Path, IO]:
    """Makes the folder and returns it with its lock, held until the process ends or closes it.

    Raises:
      ValueError: if it can't be written, or another process is running in it.
    """
    folder = pathlib.Path(path).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")
    except OSError as error:
        raise ValueError(f"the workdir {folder} can't be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ValueError(
            f"another process is running in {folder}; wait for it, or give another --workdir"
        ) from None
    return folder, lock


def record(folder: pathlib.Path, config: ConfigDict, start_step: int) -> None:
    """Writes the resolved config, and adds this start's command and versions to `starts.jsonl`."""
    (folder / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "step": start_step,
        "python": platform.python_version(),
        "devices": [str(d.device_kind) for d in jax.devices()],
        "versions": {name: _version(name) for name in _LIBRARIES},
    }
    with open(folder / "starts.jsonl", "a") as file:
        file.write(json.dumps(start) + "\n")


def _version(name: str) -> Any:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
