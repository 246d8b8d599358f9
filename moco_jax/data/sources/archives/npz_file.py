"""Opens .npz files of arrays as sources, without trusting their headers."""

import math
import os
import zipfile

import numpy as np

from moco_jax.data.sources.archives.memory import available_bytes
from moco_jax.data.sources.file_types import cut
from moco_jax.data.sources.regular_file import from_disk
from moco_jax.data.sources.source import Opened, array_source
from moco_jax.terminal import progress

KEYS = ("images", "labels", "test_images", "test_labels")


def open_npz(path: str) -> Opened:
    """Returns the splits of an .npz; `labels`, `test_images` and `test_labels` are optional.

    Raises:
      ValueError: if the file is damaged, needs more memory than there is, or has other arrays.
      OSError: if the file can't be read.
    """
    arrays, others = _read(path)
    if "images" not in arrays:
        raise ValueError(
            f"{path} has no array 'images'; it has {cut([*arrays, *others]) or 'none'}; allowed: "
            f"{', '.join(KEYS)}"
        )
    if ("test_images" in arrays) != ("test_labels" in arrays):
        raise ValueError(f"{path} must have both test_images and test_labels, or neither")
    name = os.path.basename(path)
    notes = (f"left out: the arrays {cut(others)}",) if others else ()
    train = array_source(arrays["images"], arrays.get("labels"), f"{name}, train")
    if "test_images" not in arrays:
        return Opened(train, None, notes)
    test = array_source(
        arrays["test_images"], arrays["test_labels"], f"{name}, test", train.class_names
    )
    return Opened(train, test, notes)


def _read(path: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the known arrays, and the names of all others.

    Pickled objects, which could run code, are refused.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            found = [name.removesuffix(".npy") for name in archive.namelist()]
            wanted = [key for key in KEYS if key in found]
            twice = [key for key in wanted if found.count(key) > 1]
            if twice:
                raise ValueError(f"it has the array {twice[0]!r} more than once")
            sizes = [_checked_size(archive, f"{key}.npy") for key in wanted]
            size = f"{sum(sizes) >> 20:,} MB"
            if sum(sizes) > available_bytes():
                raise ValueError(
                    f"its arrays need {sum(sizes) / 2**30:.3g} GiB, but only "
                    f"{available_bytes() / 2**30:.3g} GiB of memory are free; use a folder or a "
                    "tar of image files"
                )
            with progress.phase(f"reading {path}", detail=lambda: size):
                arrays = {key: _array(archive, f"{key}.npy") for key in wanted}
            return arrays, [name for name in found if name not in KEYS]
    except Exception as error:  # numpy and zipfile raise many types on damaged files
        if from_disk(error):
            raise
        what = str(error) or type(error).__name__
        raise ValueError(f"can't read the arrays of {path}: {what}") from error


def _checked_size(archive: zipfile.ZipFile, member: str) -> int:
    """Returns the bytes of an array, after checking its header against the size in the archive.

    numpy would allocate whatever the header says.
    """
    info = archive.getinfo(member)
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"{member} has format {version}; allowed: 1.0 and 2.0")
        if dtype.hasobject:
            raise ValueError(f"{member} holds Python objects; allowed: numbers")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or file.tell() + size != info.file_size:
            raise ValueError(
                f"{member} has the shape {shape} of {dtype}, which is not {info.file_size} bytes"
            )
    return size


def _array(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
