"""Opens the data set that a config names.

    source='digits'         coloured digits, generated in memory
    source='images'         the images at `path`
    source='tfds:<name>'    a data set prepared by TensorFlow Datasets (TFDS)

`path` is a folder of image files, a tar archive of them (.tar, .tar.gz, .tgz, .tar.bz2, .tar.xz),
an .npz of arrays, or, with 'tfds:<name>', a TFDS data directory that has <name>.
"""

import os
import zipfile
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from moco_jax.data.sources import digits, folders, image_files, tar_archive, tfds_source
from moco_jax.data.sources.source import Source, Sources, array_source, hold_out

_KNOWN = "digits, images (with a path), tfds:<name>"
_KEYS = ("source", "path", "held_out", "train_split", "test_split")  # of `data` in a config
_NPZ_KEYS = ("images", "labels", "test_images", "test_labels")


def open_named(config: ConfigDict, **changes: Any) -> Sources:
    """Returns the train and test images of a whole config; `changes` are for `open_sources`."""
    options = {key: config.data[key] for key in _KEYS} | changes
    return open_sources(seed=config.seed, **options)


def open_whole(config: ConfigDict) -> Source:
    """Returns the train images of a whole config without holding any out."""
    return open_named(config, held_out=0.0, test_split="").train


def open_sources(
    *,
    source: str,
    path: str,
    held_out: float,
    seed: int,
    train_split: str = "train",
    test_split: str = "test",
) -> Sources:
    """Returns the train images and the labelled test images.

    Args:
      source: 'digits', 'images' or 'tfds:<name>'.
      path: where the images are; '' if the source needs no path. '~' is expanded.
      held_out: fraction of each class that moves from train to test if there is no test split;
        0 for none.
      seed: selects the held-out images.
      train_split: the folder or TFDS split to train on. Digits and .npz ignore it.
      test_split: the folder or TFDS split to test on; '' for none. If 'test' (the default) is
        absent, 'val' and 'validation' are tried, and then `held_out` applies. Any other name must
        exist.

    Raises:
      ValueError: if the source is unknown, the path holds no images, the data are damaged, or a
        split does not exist.
      OSError: if the path is absent or can't be read.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"data.held_out must be a fraction in [0, 1); got {held_out}")
    if source not in ("digits", "images") and not source.startswith("tfds:"):
        raise ValueError(f"data.source={source!r} is unknown; known: {_KNOWN}")
    opened = _open(source, os.path.expanduser(path), train_split, test_split)
    return hold_out(opened.train, held_out, seed) if opened.test is None else opened


def _open(source: str, path: str, train_split: str, test_split: str) -> Sources:
    """Returns the splits that the data set itself has."""
    name = source.partition("tfds:")[2]
    if source == "tfds:":
        raise ValueError("data.source='tfds:' must name a data set, such as 'tfds:cifar10'")
    if not path:
        if source == "digits":
            return _open_digits()
        if name:
            return tfds_source.open_tfds(name, "", train_split, test_split)
        raise ValueError("data.source='images' needs data.path: a folder, a tar archive or an .npz")
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file or folder {path}")
    if os.path.isfile(path):
        return _open_file(path, train_split, test_split)
    if name and tfds_source.holds_dataset(path, name):
        return tfds_source.open_tfds(name, path, train_split, test_split)
    try:
        return image_files.open_folder(path, train_split, test_split)
    except ValueError as error:
        if not name:
            raise
        raise ValueError(
            f"{error}.\nIt does not hold the TFDS data set {name!r} either. "
            f"{tfds_source.how_to_prepare(name, path)}"
        ) from error


def _open_file(path: str, train_split: str, test_split: str) -> Sources:
    """Returns the splits of an archive or an .npz; the file name decides which it is."""
    lower = path.lower()
    if lower.endswith(tar_archive.EXTENSIONS):
        return tar_archive.open_tar(path, train_split, test_split)
    if lower.endswith(".npz"):
        return _open_npz(path)
    what = " (a single image)" if folders.is_image(path) else ""
    allowed = ", ".join((*tar_archive.EXTENSIONS, ".npz"))
    raise ValueError(f"can't open the file {path}{what}; allowed: a folder, or {allowed}")


def _open_digits() -> Sources:
    """Returns the digits data set."""
    train, test = (
        array_source(*digits.digits(split), f"digits/{split}", digits.CLASS_NAMES)
        for split in ("train", "test")
    )
    return Sources(train, test)


def _open_npz(path: str) -> Sources:
    """Returns the splits of an .npz; `labels`, `test_images` and `test_labels` are optional."""
    arrays = _read_npz(path)
    if "images" not in arrays:
        raise ValueError(
            f"{path} has no array 'images'; it has {', '.join(arrays) or 'none'} of "
            f"{', '.join(_NPZ_KEYS)}"
        )
    if ("test_images" in arrays) != ("test_labels" in arrays):
        raise ValueError(f"{path} must have both test_images and test_labels, or neither")
    name = os.path.basename(path)
    train = array_source(arrays["images"], arrays.get("labels"), f"{name}, train")
    if "test_images" not in arrays:
        return Sources(train, None)
    test = arrays["test_images"], arrays["test_labels"]
    return Sources(train, array_source(*test, f"{name}, test", train.class_names))


def _read_npz(path: str) -> dict[str, np.ndarray]:
    """Returns the known arrays of an .npz; rejects pickled objects, which could run code."""
    try:
        # Opened here, since np.load leaves a damaged file open.
        with open(path, "rb") as data, np.load(data, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if key in _NPZ_KEYS}
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"can't read the arrays of {path}: {error}") from error
