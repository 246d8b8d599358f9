"""Files of arrays, read without executing anything in them, and written whole or not at all."""

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

_OF_TORCH = (b"PK", b"\x80")  # a zip archive; a pickle, from before torch 1.6
INSTALL = "pip install 'moco-jax[convert]'"


def torch() -> Any:
    """Returns the module torch.

    Raises:
      ModuleNotFoundError: if it is not installed; says how it is.
    """
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"torch's files need torch (not safetensors): {INSTALL}"
        ) from error


def read(path: pathlib.Path) -> Any:
    """Returns what a file of torch's or a safetensors file holds, tensors as numpy arrays.

    Of torch's files only containers, numbers, strings and tensors are read, so no code runs.
    Floating-point arrays become float32.

    Raises:
      ValueError: if it is neither, or holds more than that.
      ModuleNotFoundError: if torch is needed and not there.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":  # after the length of a JSON header
        try:
            return _in_numpy(safetensors.numpy.load_file(path))
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is a damaged safetensors file: {error}") from error
    if not start.startswith(_OF_TORCH):
        raise ValueError(f"{path} is neither a safetensors file nor one of torch's")
    module = torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickles than torch's, which then fail
            return _in_numpy(module.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} is not a file of torch's with arrays alone, and what else it asks for is not "
            f"executed{f': {asked[1]}' if asked else ''}; save a state_dict(), not a module"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is a damaged file of torch's, or none: {error}") from error


def write_torch(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a nested dict for `torch.load`, numpy arrays as tensors."""
    module = torch()

    def tensors(value):
        if isinstance(value, dict):
            return {key: tensors(inner) for key, inner in value.items()}
        return module.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    module.save(tensors(content), path)


def write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays for torch's libraries, some of which ask for this metadata."""
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})


def check_fresh(out: pathlib.Path) -> None:
    """Raises a ValueError if something is there already, or nothing can be put there."""
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} exists already; remove it, or give another --out")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write {out.name} into")


@contextlib.contextmanager
def unfinished(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields another name to write to, a file or a folder, which becomes `out` if all goes well."""
    temporary = out.with_name(f".incomplete-{os.getpid()}-{out.name}")
    try:
        yield temporary
        check_fresh(out)
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if temporary.is_file():
            temporary.unlink()


def _in_numpy(value: Any) -> Any:
    """Returns nested containers with numpy arrays, float32 if floating, in place of tensors."""
    if isinstance(value, dict):
        return {key: _in_numpy(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_in_numpy(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return value if value.dtype.kind in "iub" else value.astype(np.float32)
    if hasattr(value, "is_floating_point"):
        value = value.detach()
        return (value.float() if value.is_floating_point() else value).numpy()
    return value
