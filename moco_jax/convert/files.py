"""Reads and writes files of arrays; runs no code from a file and leaves no half-written file."""

import contextlib
import importlib
import os
import pathlib
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

_TORCH_STARTS = (b"PK", b"\x80")  # a zip archive; before torch 1.6, a pickle


def import_torch() -> Any:
    """Returns torch; the error without it names the command that installs it."""
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "torch files need torch; install it with pip install 'moco-jax[convert]', or use "
            "safetensors"
        ) from error


def read(path: pathlib.Path) -> Any:
    """Returns the content of a torch or safetensors file, with tensors as numpy arrays.

    From torch files it reads containers, numbers, strings and tensors only, so no code runs.
    Floating-point arrays become float32.

    Raises:
      ValueError: if the file is of another kind, is damaged, or contains other objects.
      ModuleNotFoundError: if the file needs torch and torch is not installed.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":  # a JSON header after its length
        try:
            return _to_numpy(safetensors.numpy.load_file(path))
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is a damaged safetensors file: {error}") from error
    if not start.startswith(_TORCH_STARTS):
        raise ValueError(f"{path} is neither a safetensors file nor a torch file")
    torch = import_torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other pickles warn, then fail below
            return _to_numpy(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} contains more than arrays, and code in a file is not executed"
            f"{f': {refused[1]}' if refused else ''}; save a state_dict(), not a module"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged, or not a torch file: {error}") from error


def write_torch(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a nested dict for `torch.load`, with numpy arrays as tensors."""
    torch = import_torch()

    def tensors(value):
        if isinstance(value, dict):
            return {key: tensors(inner) for key, inner in value.items()}
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    torch.save(tensors(content), path)


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


def _to_numpy(value: Any) -> Any:
    """Returns the nested containers with numpy arrays for tensors, float32 for floats."""
    if isinstance(value, dict):
        return {key: _to_numpy(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_numpy(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind in "iub" else value.astype(np.float32)
    if hasattr(value, "is_floating_point"):
        value = value.detach()
        return (value.float() if value.is_floating_point() else value).numpy()
    return value
