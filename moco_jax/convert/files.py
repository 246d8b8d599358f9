"""Writes files of arrays; leaves no half-written file."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import safetensors.numpy


def write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays with the metadata that some torch libraries need."""
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})


def check_fresh(out: pathlib.Path) -> None:
    """Raises a ValueError if `out` exists or its parent folder does not."""
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} already exists; remove it or change --out")
    if not out.parent.is_dir():
        raise ValueError(f"the folder of --out={out} does not exist; create it or change --out")


@contextlib.contextmanager
def atomic_output(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path for a file or folder; renames it to `out` on success."""
    temporary = out.with_name(f".incomplete-{os.getpid()}-{out.name}")
    try:
        yield temporary
        check_fresh(out)
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if temporary.is_file():
            temporary.unlink()
