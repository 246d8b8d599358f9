"""Reads and writes torch files; runs no code from a file and checks that the file is whole."""

import argparse
import importlib
import pathlib
import pickle
import re
import warnings
import zipfile
from typing import Any, NamedTuple

import numpy as np

STARTS = (b"PK", b"\x80")  # a zip archive; before torch 1.6, a pickle
_OLDEST = (2, 6)  # weights_only=True of older versions may run code: CVE-2025-32434
_DEEPEST = 50  # containers inside each other
_DTYPES = "float16 bfloat16 float32 float64 bool uint8 int8 int16 int32 int64".split()


class Unreadable(NamedTuple):
    """A tensor that numpy has no array for. It is an error only if the encoder needs it."""

    reason: str  # such as "a sparse tensor"
    shape: tuple[int, ...]


ARRAYS = (np.ndarray, Unreadable)


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
    """Returns the content of a file: containers, numbers, strings and numpy arrays.

    Floating-point tensors become float32, and an `argparse.Namespace`, which holds the flags of
    many programs, becomes a dict: making one runs no code of the file. The checksums of a zip
    archive are compared first. The format before torch 1.6 has none.

    Raises:
      ValueError: if the file is damaged or contains other objects, or torch is older than 2.6.
      ModuleNotFoundError: if torch is not installed.
    """
    torch = import_torch()
    _check_version(str(torch.__version__))
    zipped = _check_archive(path)
    try:
        with warnings.catch_warnings(), _safe(torch):
            warnings.simplefilter("ignore")  # other pickles warn, then fail below
            # A mapped file bounds each storage; a storage that is read may claim more than it has.
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
            return _to_numpy(content, {}, 0)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, torch, str(error))) from error
    except Exception as error:  # torch has no list of what it raises for damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{path} is damaged, or not a torch file: {reason}") from error


def write(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes nested containers for `torch.load`, with numpy arrays as tensors."""
    torch = import_torch()

    def tensors(value):
        if isinstance(value, dict):
            return {key: tensors(inner) for key, inner in value.items()}
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    torch.save(tensors(content), path)


def _check_version(version: str) -> None:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < _OLDEST:
        raise ValueError(
            f"torch {version} is installed, but torch files are read with torch 2.6 or newer only: "
            "an older version may run code from a file (CVE-2025-32434); run "
            "pip install --upgrade 'torch>=2.6'"
        )


def _check_archive(path: pathlib.Path) -> bool:
    """Returns whether the file is a zip archive; raises a ValueError if it is a damaged one.

    torch does not compare the checksums.
    """
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
            if packed or len({m.filename for m in members}) < len(members):
                raise ValueError("torch.save writes no compressed or repeated parts")
            damaged = archive.testzip()
    except Exception as error:  # zipfile has no list of what it raises for damaged files
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is damaged, or not a torch file: {reason}") from error
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of its part {damaged!r} is wrong")
    return True


def _safe(torch: Any) -> Any:
    """Returns a context in which torch's restricted reader takes objects that only hold values."""
    return torch.serialization.safe_globals([argparse.Namespace])


def _refusal(path: pathlib.Path, torch: Any, error: str) -> str:
    """Returns the message for a file that torch's restricted reader refuses."""
    refused = re.findall(r"GLOBAL (\S+)", error)
    if not refused:
        reason = error.rpartition("WeightsUnpickler error: ")[2].strip().splitlines() or [""]
        return f"{path} is damaged, or contains more than arrays: {reason[0][:200]}"
    try:
        with _safe(torch):
            refused = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # not a zip archive: only the first one is known
        pass
    names = ", ".join(refused[:6]) + (f" and {len(refused) - 6} more" if refused[6:] else "")
    return (
        f"{path} contains more than arrays, and code in a file is not executed: {names}; save a "
        "state_dict(), not a module. If you trust the file, this saves its state_dict:\n"
        "  python -c \"import torch; c = torch.load('FILE', 'cpu', weights_only=False); "
        "torch.save(c['state_dict'], 'weights.pth')\""
    )


def _to_numpy(value: Any, done: dict[int, Any], depth: int) -> Any:
    """Returns the containers with arrays for tensors; `done` has each container once, by id."""
    if depth > _DEEPEST:
        raise ValueError(f"its containers are nested more than {_DEEPEST} deep")
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, (dict, argparse.Namespace)):
        found = done[id(value)] = {}
        inside = value if isinstance(value, dict) else vars(value)
        found.update({key: _to_numpy(inner, done, depth + 1) for key, inner in inside.items()})
        return found
    if isinstance(value, (list, tuple)):
        items = done[id(value)] = []
        items.extend(_to_numpy(inner, done, depth + 1) for inner in value)
        return items
    return _array(value) if hasattr(value, "is_floating_point") else value


def _array(tensor: Any) -> np.ndarray | Unreadable:
    """Returns a tensor's array, float32 for floating-point numbers."""
    tensor, dtype = tensor.detach(), str(tensor.dtype).removeprefix("torch.")
    odd = {
        "a nested tensor": tensor.is_nested,
        "a sparse tensor": str(tensor.layout) != "torch.strided",
        "a meta tensor, without values": tensor.is_meta,
        f"quantised, {dtype}": tensor.is_quantized,
        f"of dtype {dtype}": dtype not in _DTYPES,
    }
    reason = next((text for text, present in odd.items() if present), None)
    shape = () if tensor.is_nested else tuple(tensor.shape)
    if (
        reason is None
        and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
    ):
        reason = "an expanded tensor, with fewer values than its shape"
    if reason is not None:
        return Unreadable(reason, shape)
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
