"""Reads files of arrays; runs no code from a file."""

import pathlib
from typing import Any

import numpy as np
import safetensors

from moco_jax.text import shortened
from moco_jax.weights import torch_files

# Of safetensors, those that numpy reads; JAX has registered bfloat16.
_DTYPES = "F16 BF16 F32 F64 BOOL U8 I8 I16 I32 I64".split()


def read(path: pathlib.Path) -> Any:
    """Returns the content of a torch or safetensors file, with tensors as numpy arrays.

    Floating-point arrays become float32. No code in the file runs; see `torch_files.read`.

    Raises:
      ValueError: if the file is of another kind, is damaged, or contains other objects.
      ModuleNotFoundError: if the file needs torch and torch is not installed.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":  # a JSON header after its length
        return _read_safetensors(path)
    if not start.startswith(torch_files.STARTS):
        raise ValueError(f"{path} is neither a safetensors file nor a torch file")
    return torch_files.read(path)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray | torch_files.Unreadable]:
    try:
        with safetensors.safe_open(path, framework="numpy") as opened:
            return {name: _tensor(opened, name) for name in opened.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is a damaged safetensors file: {shortened(error)}") from error


def _tensor(opened: Any, name: str) -> np.ndarray | torch_files.Unreadable:
    about = opened.get_slice(name)
    dtype = about.get_dtype()
    if dtype not in _DTYPES:
        return torch_files.Unreadable(f"of dtype {dtype}", tuple(about.get_shape()))
    array = opened.get_tensor(name)
    return array if array.dtype.kind in "iub" else array.astype(np.float32)
