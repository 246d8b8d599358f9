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

_STARTS = "starts.jsonl"
_OURS = ("config.json", "metrics.jsonl", "parameters.txt", "checkpoints", "tensorboard")
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def open_workdir(path: str | os.PathLike) -> tuple[pathlib.Path, IO]:
    """Makes the folder and returns it with its lock, held until the process ends or closes it.

    Raises:
      ValueError: if it can't be written, holds files that no run of ours wrote, or another process
        is running in it.
    """
    if "://" in str(path):
        raise ValueError(f"the workdir {path} must be a local or mounted folder, not a URL")
    folder = pathlib.Path(path).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")
    except OSError as error:
        raise ValueError(f"the workdir {folder} can't be written: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ValueError(
            f"another process is running in {folder}; wait for it, or give another --workdir"
        ) from None
    foreign = [name for name in _OURS if (folder / name).exists()]
    if foreign and not (folder / _STARTS).exists():
        lock.close()
        raise ValueError(
            f"{folder} holds {', '.join(foreign)} but no {_STARTS}, so no run of moco_jax wrote "
            "them; give another --workdir"
        )
    return folder, lock


def record(folder: pathlib.Path, config: ConfigDict, start_step: int) -> None:
    """Writes the resolved config, and adds this start's command and versions to `starts.jsonl`."""
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "step": start_step,
        "python": platform.python_version(),
        "devices": [str(d.device_kind) for d in jax.devices()],
        "versions": {name: _version(name) for name in _LIBRARIES},
    }
    with open(folder / _STARTS, "a") as file:  # first: it tells that the other files are ours
        file.write(json.dumps(start) + "\n")
    (folder / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")


def _version(name: str) -> Any:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
