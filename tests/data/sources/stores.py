"""Writes small folders and archives for tests, and finds real data sets if they exist."""

import io
import os
import pathlib
import tarfile

import pytest

from moco_jax.data.sources.opening import open_sources

REAL_DATA = pathlib.Path(__file__).parents[3].parent / "shared" / "data"
SPLIT_PATHS = [
    "train/cat/2.jpg",
    "train/cat/1.JPG",
    "train/dog/deep/er/3.png",
    "train/ant/4.webp",
    "test/dog/5.jpeg",
    "test/cat/6.jpg",
]
ENDINGS = {"tar": ".tar", "gz": ".tar.gz", "bz2": ".tar.bz2", "xz": ".tar.xz"}


def open_images(path, held_out=0.0, **options):
    return open_sources(source="images", path=str(path), held_out=held_out, seed=0, **options)


def images(folders, count=3):
    """Returns paths of images in folders."""
    return [f"{folder}/{i}.jpg" for folder in folders.split() for i in range(count)]


def write_folder(root, paths):
    """Writes files; the contents of each are its relative path."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(os.fsencode(path))
    return root


def write_tar(path, members, compression=""):
    """Writes an archive; the contents of each member are its name."""
    with tarfile.open(path, f"w:{compression}") as archive:
        for name in members:
            info = tarfile.TarInfo(name)
            data = os.fsencode(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def contents(source):
    """Returns the bytes of all images as text."""
    return [source.read(i).decode() for i in range(len(source))]


def real(name):
    if not (REAL_DATA / name).exists():
        pytest.skip(f"needs {name}, which is not in the repository")
    return REAL_DATA / name
